"""Is one model better than another on the same items?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Z_ALPHA = 1.959963984540054  # the normal distribution's 97.5 % point: a two-sided test at 5 %
_Z_POWER = 0.8416212335729143  # its 80 % point
FLIPS = 9999
_SIGNS_AT_ONCE = 1 << 22  # bounds memory, whatever the number of items


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Under the null hypothesis each item on which exactly one model is right is a fair coin (McNemar 1947).

    Args:
        b: items that only the first model has right.
        c: items that only the second has right.

    Raises:
        ValueError: a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts cannot be negative, got {b} and {c}")
    n = b + c
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(min(b, c) + 1)
    )
    return min(1.0, 2 * tail)


def sign_flip(differences: Sequence[float] | NDArray[np.generic], seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p-value of paired differences `[n]` by random changes of sign.

    Under the null hypothesis either model could have been either, so that the sign of each item's difference is a fair
    coin; the p-value is the share of random signs whose sum is as far from zero, the data's own signs counted as one
    (Fisher 1935; Phipson and Smyth 2010). Nothing is assumed of the distribution.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    items = np.asarray(differences, dtype=np.float64)
    if not items.size or not np.isfinite(items).all():
        raise ValueError(f"differences must be finite and at least one, got {items.size} of them")
    generator = np.random.default_rng(seed)
    seen, beyond = abs(items.sum()) * (1 - 1e-12), 0
    at_once = max(1, _SIGNS_AT_ONCE // items.size)
    for start in range(0, flips, at_once):
        signs = generator.integers(0, 2, (min(at_once, flips - start), items.size), dtype=np.int8) * 2 - 1
        beyond += int(np.count_nonzero(np.abs(signs @ items) >= seen))
    return (beyond + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it counts among all of these tests (Holm 1979), in the order given.

    Of m tests the smallest is multiplied by m, the next by m - 1 and so on, and none comes out below a smaller one. Who
    believes what stays below 0.05 believes anything wrong in at most 5 % of such families, whatever hangs together in
    them.

    Raises:
        ValueError: a value lies outside 0..1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must lie in 0..1, got {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def items_to_tell(difference: float, disagreement: float) -> int:
    """How many items tell two models apart: McNemar's test, two-sided at 5 %, then finds the difference in 80 % of cases.

    (z sqrt(d) + z' sqrt(d - difference^2))^2 / difference^2, where d is the share of items on which exactly one model
    is right (Connor 1987). The exact test needs a few more.

    Args:
        difference: of the shares of right answers, above 0.
        disagreement: share of items on which exactly one model is right; at least the difference, which it is raised to.

    Raises:
        ValueError: a share lies outside 0..1, or the difference is 0.
    """
    if not 0 < difference <= 1 or not 0 <= disagreement <= 1:
        raise ValueError(f"expected shares in 0..1, got {difference} and {disagreement}")
    d = max(disagreement, difference)
    root = _Z_ALPHA * math.sqrt(d) + _Z_POWER * math.sqrt(d - difference * difference)
    return math.ceil((root / difference) ** 2)
