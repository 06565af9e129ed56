"""How many questions of each source, and which: by weight, by stratum, seeded, at four bytes a question."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

DROPPED = -1


class Stock:
    """What one source has: for each of its questions the number of its stratum, or DROPPED."""

    def __init__(self, weight: float | None = None) -> None:
        self.weight = weight
        self._strata: dict[str, int] = {}
        self._rows = array("i")

    def add(self, stratum: str) -> None:
        """The next question may be taken."""
        self._rows.append(self._strata.setdefault(stratum, len(self._strata)))

    def drop(self) -> None:
        """The next question is a repetition or must not be asked."""
        self._rows.append(DROPPED)

    @property
    def rows(self) -> NDArray[np.int32]:
        """[questions] int32."""
        return np.frombuffer(self._rows, np.int32) if self._rows else np.zeros(0, np.int32)

    @property
    def available(self) -> int:
        """Questions that may be taken, each stratum as it is."""
        return int(np.count_nonzero(self.rows != DROPPED))


def quotas(stocks: Sequence[Stock], count: int | None) -> list[int]:
    """How many questions of each source: in the ratio of the weights, no more than there are.

    Where no source has a weight, a smaller count is taken from all in proportion to what they have. Without a count
    weights give the largest mixture that keeps their ratio.
    """
    there = [stock.available for stock in stocks]
    if all(stock.weight is None for stock in stocks):
        if count is None or count >= sum(there):
            return there
        shares = [float(number) for number in there]
    else:
        shares = [1.0 if stock.weight is None else stock.weight for stock in stocks]
    total = sum(shares)
    if count is None:
        count = min(int(number * total / share + 1e-9) for number, share in zip(there, shares, strict=True))
    return [min(number, whole) for number, whole in zip(there, _apportion(count, shares), strict=True)]


def _apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `count`, as near to the shares as can be (largest remainders)."""
    exact = [count * share / sum(shares) for share in shares]
    whole = [int(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for index in order[: count - sum(whole)]:
        whole[index] += 1
    return whole


def choose(stock: Stock, quota: int, seed: int, *, stratified: bool) -> NDArray[np.bool_]:
    """[questions] bool: which ones are taken.

    Stratified, every stratum gives the same number as far as it has them, and the rest comes from those with more.
    """
    rows, draw = stock.rows, np.random.default_rng(seed)
    chosen = np.zeros(len(rows), bool)
    if not stratified:
        kept = np.flatnonzero(rows != DROPPED)
        chosen[kept if quota >= len(kept) else draw.choice(kept, quota, replace=False)] = True
        return chosen
    sizes = np.bincount(rows[rows != DROPPED]) if quota else np.zeros(0, int)
    for stratum, number in enumerate(_level(sizes.tolist(), quota)):
        chosen[draw.choice(np.flatnonzero(rows == stratum), number, replace=False)] = True
    return chosen


def _level(sizes: Sequence[int], quota: int) -> list[int]:
    """Equal numbers from all, no more than each has, adding up to the quota; the first ones get the odd ones."""
    taken, left = [0] * len(sizes), min(quota, sum(sizes))
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        taken[index] = min(sizes[index], left // (len(sizes) - place))
        left -= taken[index]
    return taken


def interleave(sources: Sequence[tuple[Iterator[T], NDArray[np.bool_]]]) -> Iterator[T]:
    """The chosen items of all sources, evenly spread: after any part of the whole each source has given that part."""
    totals = [max(1, int(np.count_nonzero(mask))) for _, mask in sources]
    streams = [compress(items, mask.tolist()) for items, mask in sources]
    given = [0] * len(streams)
    alive = set(range(len(streams)))
    while alive:
        index = min(alive, key=lambda i: ((given[i] + 1) / totals[i], i))
        try:
            item = next(streams[index])
        except StopIteration:
            alive.remove(index)
            continue
        given[index] += 1
        yield item
