"""How far a measured figure may lie from the truth: 95 % intervals for shares, means, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Values: TypeAlias = Sequence[float] | Sequence[bool] | NDArray[np.generic]

RESAMPLES = 2000
_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_DRAWS_AT_ONCE = 1 << 22  # bounds memory: 32 MiB of indices, whatever the number of items


class Interval(NamedTuple):
    """An estimate and its two-sided 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): honest at small n and next to 0 and 1.

    Raises:
        ValueError: n is not positive or successes lies outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n above 0, got {successes} of {n}")
    share, z2 = successes / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and at n the bound is exact; floating point would leave it a hair off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high)


def bootstrap_mean(values: Values, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `values` [n] with its percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: `values` is empty or holds something that is not finite.
    """
    (items,) = _paired(values)
    return _interval(float(items.mean()), _resampled([items], lambda means: means[0], seed, resamples))


def paired_bootstrap_difference(
    first: Values, second: Values, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """mean(first) - mean(second), both [n] over the same items; whole items are drawn, so the pairing counts.

    Raises:
        ValueError: empty, of unequal length, or not finite.
    """
    a, b = _paired(first, second)
    return bootstrap_mean(a - b, seed, resamples)


def paired_bootstrap_ratio(
    student: Values, teacher: Values, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """mean(student) / mean(teacher), both [n] over the same items: the retention of a student.

    Also the interval of a mean over items of unequal size: sums a lesson over tokens a lesson. A resample
    in which the teacher's mean is zero has no ratio and is left out.

    Raises:
        ValueError: empty, of unequal length, not finite, or the teacher's mean is zero.
    """
    a, b = _paired(student, teacher)
    if b.mean() == 0:
        raise ValueError("the teacher's mean is zero: there is nothing to be retained")

    def ratio(means: Floats) -> Floats:
        known = means[:, means[1] != 0]
        return known[0] / known[1]

    return _interval(float(a.mean() / b.mean()), _resampled([a, b], ratio, seed, resamples))


def _paired(*columns: Values) -> list[Floats]:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    shape = arrays[0].shape
    if len(shape) != 1 or shape[0] == 0 or any(array.shape != shape for array in arrays):
        raise ValueError(f"expected equally long lists of numbers, got {[array.shape for array in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("every value must be finite")
    return arrays


def _resampled(
    columns: list[Floats], statistic: Callable[[Floats], Floats], seed: int, resamples: int
) -> Floats:
    """The statistic of the columns' means, once a resample: [columns, k] in, [k] out."""
    table = np.stack(columns)
    parts = [statistic(table[:, index].mean(axis=2)) for index in _draws(table.shape[1], seed, resamples)]
    return np.concatenate(parts)


def _draws(n: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices of items drawn with replacement, [k, n] at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        yield generator.integers(0, n, size=(min(at_once, resamples - start), n))


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975)) if resampled.size else (value, value)
    return Interval(value, float(low), float(high))
