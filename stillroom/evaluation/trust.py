"""What can be built on a model's own confidence: is it too sure of itself, and would asking the teacher in doubt help?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillroom.contracts.records import ResultRow
from stillroom.evaluation.results import ModelResult
from stillroom.evaluation.scoring import Verdict
from stillroom.stats import bootstrap_mean, paired_bootstrap_difference, paired_bootstrap_ratio

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""How much of the questions a cascade's student answers; fixed beforehand, so that no right answer chooses them."""


def trust_rows(results: Sequence[ModelResult], teacher: str, seed: int = 0) -> Iterator[ResultRow]:
    """Rows about confidence, of tasks on which every answer has one.

    `overconfidence`: mean of confidence minus being right, above zero too sure; `difference:overconfidence`: that minus the
    teacher's on the same items; `cascade`, `at` the share of the questions that the student answers alone, the surest ones:
    the right answers of both together over the teacher's; `cascade_from`, `at` the same share: the confidence from which
    the student answers alone.
    """
    theirs = next((result for result in results if result.name == teacher), None)
    for result in results:
        for task, verdicts in result.verdicts.items():
            if gaps := _gaps(verdicts):
                yield ResultRow(result.name, task, "overconfidence", *bootstrap_mean(gaps, seed), n=len(gaps))
            if theirs is None or result is theirs or task not in theirs.verdicts:
                continue
            others = theirs.verdicts[task]
            if gaps and (apart := _gaps(others)):
                change = paired_bootstrap_difference(gaps, apart, seed)
                yield ResultRow(
                    result.name, task, "difference:overconfidence", *change, n=len(gaps), versus=teacher
                )
            if gaps and any(verdict.correct for verdict in others):
                yield from _cascade(result.name, task, verdicts, others, teacher, seed)


def _gaps(verdicts: Sequence[Verdict]) -> list[float] | None:
    """Confidence minus being right, an item; None where a confidence is missing."""
    found = [v.confidence - v.correct for v in verdicts if v.confidence is not None]
    return found if found and len(found) == len(verdicts) else None


def _cascade(
    model: str, task: str, ours: Sequence[Verdict], theirs: Sequence[Verdict], teacher: str, seed: int
) -> Iterator[ResultRow]:
    n = len(ours)
    sure = sorted((verdict.confidence or 0.0 for verdict in ours), reverse=True)
    wanted = [verdict.correct for verdict in theirs]
    for threshold in dict.fromkeys(sure[max(1, round(share * n)) - 1] for share in _SHARES):
        alone = [(own.confidence or 0.0) >= threshold for own in ours]
        together = [
            own.correct if by_itself else other.correct
            for by_itself, own, other in zip(alone, ours, theirs, strict=True)
        ]
        kept = paired_bootstrap_ratio(together, wanted, seed)
        share = sum(alone) / n
        yield ResultRow(model, task, "cascade", *kept, n=n, at=share, versus=teacher)
        yield ResultRow(model, task, "cascade_from", threshold, n=n, at=share)
