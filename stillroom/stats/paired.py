"""Is one model better than another on the same items?"""

from __future__ import annotations

import math


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
