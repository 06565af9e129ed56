"""A curve as rows, for whoever draws it."""

from __future__ import annotations

from collections.abc import Iterator

from stillroom.contracts.records import ResultRow
from stillroom.routing.curves import Curve

_POINTS = 20


def curve_rows(curve: Curve, model: str) -> Iterator[ResultRow]:
    """Rows of the task `cascade`, `n` items each.

    `quality`, `quality:oracle` and `quality:random`, each `at` the share sent on: 0, 0.05 ... 1; `apgr`; `cpt`, `at` the
    part of the way from student to teacher that is to be gone, 0.5 and 0.8. The last two only where the teacher is better.
    """
    items = len(curve.shares) - 1
    for point in range(_POINTS + 1):
        share = point / _POINTS
        for metric, quality in (
            ("quality", curve.at(share)),
            ("quality:oracle", curve.best(share)),
            ("quality:random", curve.random(share)),
        ):
            yield ResultRow(model, "cascade", metric, quality, n=items, at=share)
    if curve.apgr is not None:
        yield ResultRow(model, "cascade", "apgr", curve.apgr, n=items)
    for part in (0.5, 0.8):
        if (share_needed := curve.cpt(part)) is not None:
            yield ResultRow(model, "cascade", "cpt", share_needed, n=items, at=part)
