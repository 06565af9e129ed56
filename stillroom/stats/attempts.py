"""Is one of several tries right?"""

from __future__ import annotations

from math import comb


def pass_at_k(attempts: int, right: int, k: int) -> float:
    """The chance that at least one of `k` tries at a question is right, from more tries than that.

    The unbiased estimator of Chen et al. (Evaluating Large Language Models Trained on Code, arXiv 2107.03374, section 2.1):
    1 - C(attempts - right, k) / C(attempts, k), the share of all choices of k tries that hold a right one. One minus the
    k-th power of the share of wrong tries would be too low.

    Args:
        attempts: tries at the question, independent of each other.
        right: how many of them are right.
        k: tries that count, at most `attempts`.

    Raises:
        ValueError: the numbers do not fit together.
    """
    if not 0 <= right <= attempts or not 1 <= k <= attempts:
        raise ValueError(
            f"expected 0 <= right <= attempts and 1 <= k <= attempts, got {right}, {attempts}, {k}"
        )
    return 1 - comb(attempts - right, k) / comb(attempts, k)
