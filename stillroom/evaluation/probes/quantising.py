"""Do distilled models lose less by quantising than others of their size?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillroom.contracts.records import PROBE, ResultRow
from stillroom.evaluation.results import ModelResult
from stillroom.stats import paired_bootstrap_difference


def quantising_rows(
    results: Sequence[ModelResult],
    task: str,
    student: str,
    baselines: Sequence[str],
    kinds: Sequence[str],
    seed: int = 0,
) -> Iterator[ResultRow]:
    """What each kind of file costs each model, and what it costs the student less (above zero) or more than a baseline.

    Rows `lost`: right answers of the file minus those of the model that it was made from; `lost_less`: the student's
    `lost` minus that of the baseline's file of the same kind, item by item on the same questions.
    """
    right = {r.name: [v.correct for v in r.verdicts[task]] for r in results if task in r.verdicts}
    for kind in kinds:
        changes = {
            name: [
                int(file) - int(whole)
                for file, whole in zip(right[f"{name}-{kind}"], right[name], strict=True)
            ]
            for name in (student, *baselines)
            if f"{name}-{kind}" in right and name in right
        }
        for name, change in changes.items():
            file, zero = f"{name}-{kind}", [0] * len(change)
            lost = paired_bootstrap_difference(change, zero, seed)
            yield ResultRow(file, f"{PROBE}quantised", "lost", *lost, n=len(change), versus=name)
        for name in baselines:
            if name in changes and student in changes:
                less = paired_bootstrap_difference(changes[student], changes[name], seed)
                yield ResultRow(
                    f"{student}-{kind}",
                    f"{PROBE}quantised",
                    "lost_less",
                    *less,
                    n=len(changes[name]),
                    versus=f"{name}-{kind}",
                )
