"""What can be promised of the answers that a model keeps: exact bounds on their error, and tests in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stillroom.stats.intervals import Floats


def binomial_at_most(count: int, n: int, share: float) -> float:
    """The chance that at most `count` of `n` independent items have a property that each has with chance `share`.

    Raises:
        ValueError: count outside 0..n, or share outside 0..1.
    """
    if not 0 <= count <= n or not 0 <= share <= 1:
        raise ValueError(f"expected 0 <= count <= n and a share in 0..1, got {count}, {n}, {share}")
    if count == n or share == 0:
        return 1.0
    if share == 1:
        return 0.0
    terms = _log_choose(n)[: count + 1] + np.arange(count + 1) * math.log(share)
    terms += (n - np.arange(count + 1)) * math.log1p(-share)
    most = float(terms.max())
    return min(1.0, math.exp(most) * float(np.exp(terms - most).sum()))


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound of a share of which `count` of `n` items were seen (Clopper and Pearson 1934).

    Exact: whatever the true share, it lies above the bound in at most 1 - confidence of all samples.

    Raises:
        ValueError: count outside 0..n, or confidence outside 0..1.
    """
    _check_shares(confidence=confidence)
    if count == n:
        return 1.0
    low, high = count / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if binomial_at_most(count, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def fixed_sequence(
    wrong: Sequence[int], kept: Sequence[int], max_error: float, confidence: float = 0.95
) -> int:
    """How many hypotheses "more than `max_error` of what rule j keeps is wrong" fall, tested in order until one stands.

    Rules in an order that the items at hand had no say in, each tested by its exact binomial p-value at the whole level:
    the chance that any true one falls is at most 1 - confidence (fixed-sequence testing; for thresholds of a model
    Angelopoulos et al., Learn then Test, arXiv 2110.01052). A rule falls where its Clopper-Pearson bound is at most
    `max_error`, which is the same.

    Args:
        wrong: [rules] of the items that rule j keeps, how many are wrong.
        kept: [rules] how many it keeps.

    Returns:
        The length of the run of fallen hypotheses: rules before it can be promised.

    Raises:
        ValueError: lists of unequal length, more wrong than kept, or a share outside 0..1.
    """
    _check_shares(max_error=max_error, confidence=confidence)
    if len(wrong) != len(kept):
        raise ValueError(f"expected equally long lists, got {len(wrong)} and {len(kept)}")
    for place, (bad, n) in enumerate(zip(wrong, kept, strict=True)):
        if binomial_at_most(bad, n, max_error) > 1 - confidence:
            return place
    return len(kept)


def fewest_kept(max_error: float, confidence: float = 0.95, wrong: int = 0) -> int:
    """The fewest kept items of which `wrong` may be wrong, so that the bound is at most `max_error`.

    Raises:
        ValueError: a share outside 0..1, or max_error 0, which no number of items can show.
    """
    _check_shares(max_error=max_error, confidence=confidence)
    low, high = wrong, wrong + 1
    while binomial_at_most(wrong, high, max_error) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_at_most(wrong, middle, max_error) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def least_escalated(error: float, max_error: float) -> float:
    """The share that any router must send on, however good, where `error` of all answers are wrong and `max_error` of the
    kept ones may be: (error - max_error) / (1 - max_error), reached by sending on wrong answers only."""
    return max(0.0, (error - max_error) / (1 - max_error))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {share}")


def _log_choose(n: int) -> Floats:
    """[n + 1] logs of the binomial coefficients of n."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return factorials[n] - factorials - factorials[::-1]
