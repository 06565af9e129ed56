"""Does a model know what it knows? Confidence held against being right."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.stats.intervals import Floats, Values, wilson


class Bin(NamedTuple):
    """One point of a reliability curve: n items of similar confidence, and how many of them are right."""

    confidence: float
    """Mean confidence of the bin's items."""
    accuracy: float
    n: int
    low: float
    """Wilson's 95 % bounds of the accuracy."""
    high: float


def brier(confidence: Values, correct: Values) -> float:
    """Mean squared distance of confidence from being right (Brier 1950): 0 is perfect, 0.25 a coin.

    Args:
        confidence: [n] in 0..1.
        correct: [n] bools.

    Raises:
        ValueError: empty, of unequal length, or a confidence outside 0..1.
    """
    p, right = _checked(confidence, correct)
    return float(np.mean((p - right) ** 2))


def expected_calibration_error(confidence: Values, correct: Values, bins: int = 15) -> float:
    """Mean distance of accuracy from confidence over equal-mass bins (Naeini et al. 2015), weighted by size.

    Equal-mass, not equal-width: a good student's confidences crowd near 1, where equal widths see one bin.

    Args:
        confidence: [n] in 0..1.
        correct: [n] bools.
        bins: how many; items of equal confidence stay together, so that fewer may come out.

    Raises:
        ValueError: empty, of unequal length, a confidence outside 0..1, or no bins.
    """
    curve = reliability_curve(confidence, correct, bins)
    total = sum(point.n for point in curve)
    return sum(point.n * abs(point.accuracy - point.confidence) for point in curve) / total


def reliability_curve(confidence: Values, correct: Values, bins: int = 15) -> list[Bin]:
    """Accuracy at rising confidence, one point an equal-mass bin; arguments as above.

    Raises:
        ValueError: as `expected_calibration_error`.
    """
    p, right = _checked(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    order = np.argsort(p, kind="stable")
    p, right = p[order], right[order]
    edges = _edges(p, bins)
    return [_bin(p[a:b], right[a:b]) for a, b in pairwise(edges)]


def _edges(ascending: Floats, bins: int) -> list[int]:
    """Bounds of equal-mass bins; each moves up past its ties, so that the order of the items does not matter."""
    ideal: NDArray[np.int64] = np.arange(1, bins) * len(ascending) // bins
    starts = ideal[ideal > 0]
    inner = np.searchsorted(ascending, ascending[starts - 1], side="right")
    return [int(edge) for edge in np.unique(np.concatenate([[0], inner, [len(ascending)]]))]


def _bin(p: Floats, right: Floats) -> Bin:
    accuracy, low, high = wilson(int(right.sum()), len(p))
    return Bin(float(p.mean()), accuracy, len(p), low, high)


def _checked(confidence: Values, correct: Values) -> tuple[Floats, Floats]:
    p, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or p.shape != right.shape:
        raise ValueError(f"expected equally long lists, got {p.shape} confidences, {right.shape} verdicts")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("every confidence must lie in 0..1")
    if not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("every verdict must be true or false")
    return p, right
