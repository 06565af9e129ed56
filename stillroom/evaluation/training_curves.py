"""The losses of a training run as rows, thinned so that a page can draw them."""

from __future__ import annotations

import math
from pathlib import Path

from stillroom.contracts.files import read_lines
from stillroom.contracts.records import ResultRow

METRICS = ("loss", "validation_loss", "validation_kl")
MOST = 200
"""Points of each curve."""


def training_rows(model: str, metrics: Path) -> list[ResultRow]:
    """The rows of a metrics.jsonl, task `training`, `at` the step; none where the model was not trained.

    A step that was done twice, since a run was killed after its last checkpoint, counts as it was done last.
    """
    if not metrics.is_file():
        return []
    curves: dict[str, dict[int, float]] = {metric: {} for metric in METRICS}
    for line in read_lines(metrics):
        for metric in METRICS:
            if metric in line and math.isfinite(line[metric]):
                curves[metric][line["step"]] = line[metric]
    return [
        ResultRow(model, "training", metric, curve[step], at=step)
        for metric, curve in curves.items()
        for step in _thinned(sorted(curve))
    ]


def _thinned(steps: list[int]) -> list[int]:
    """At most MOST of them, evenly spread, first and last included."""
    if len(steps) <= MOST:
        return steps
    return [steps[i * (len(steps) - 1) // (MOST - 1)] for i in range(MOST)]
