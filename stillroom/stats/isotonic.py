"""Scores to chances by the one assumption that a higher score is no worse: isotonic regression."""

from __future__ import annotations

import numpy as np

from stillroom.stats.intervals import Floats, Values


def isotonic(scores: Values, outcomes: Values) -> tuple[Floats, Floats]:
    """The rising steps nearest to the outcomes in squares, by pooling adjacent violators (Ayer et al. 1955).

    Args:
        scores: [n], in any order.
        outcomes: [n], 0 or 1 or anything between.

    Returns:
        (places, values), both [m], m <= n: each pool's mean score and mean outcome, both rising. Chances between the
        places are read off straight lines: `np.interp(score, places, values)`.

    Raises:
        ValueError: empty or of unequal length.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or x.shape != y.shape:
        raise ValueError(f"expected equally long lists, got {x.shape} scores, {y.shape} outcomes")
    # Equal scores are one item: no curve can tell them apart.
    places, group, sizes = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=y) / sizes
    pools: list[tuple[float, float, float]] = []  # sums of scores and of outcomes, and how many items
    for place, mean, size in zip(places.tolist(), means.tolist(), sizes.tolist(), strict=True):
        score, value, count = place * size, mean * size, float(size)
        while pools and pools[-1][1] * count >= value * pools[-1][2]:
            before = pools.pop()
            score, value, count = score + before[0], value + before[1], count + before[2]
        pools.append((score, value, count))
    sums = np.array(pools)
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
