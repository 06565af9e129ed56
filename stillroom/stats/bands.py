"""Which earlier signatures agree with this one in a whole band: a hash table a band, in flat arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]

DEEPEST = 64
"""Entries of one bucket that are looked at, the newest: so a template that thousands of texts share stays cheap. A
pair at the threshold usually meets in several bands."""


class BandIndex:
    """Signatures by band. Items are numbered from 0 in the order of adding.

    Each band has a table of chains; an item takes 12 to 16 bytes a band. A bucket's key is 32 bits, so that now and
    then a stranger comes along: callers compare.

    Args:
        bands: parts of a signature.
        rows: entries of each part; signatures have bands * rows entries.
        seed: seeds the keys.
    """

    def __init__(self, bands: int, rows: int, seed: int = 0) -> None:
        self.bands, self.rows = bands, rows
        self._weights = np.random.default_rng(seed + 1).integers(
            0, 1 << 63, rows, dtype=np.uint64
        ) | np.uint64(1)
        self._all = np.arange(bands)
        self._count = 0
        self._heads = np.full((bands, 1024), -1, np.int32)
        self._before = np.empty((1024, bands), np.int32)
        self._keys = np.empty((1024, bands), np.uint32)

    def keys(self, signature: NDArray[np.uint32]) -> Keys:
        """[bands] uint32: the key of each band of a signature."""
        mixed = (signature.reshape(self.bands, self.rows) * self._weights).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(31)
        return (mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).astype(np.uint32)

    def candidates(self, keys: Keys) -> list[int]:
        """Items that share a band, those that share the most first, of equals the earliest first."""
        found = []
        items = self._heads[self._all, keys & np.uint32(self._heads.shape[1] - 1)]
        bands = self._all
        for _ in range(DEEPEST):
            alive = items >= 0
            if not alive.any():
                break
            items, bands = items[alive], bands[alive]
            found.append(items[self._keys[items, bands] == keys[bands]])
            items = self._before[items, bands]
        if not found:
            return []
        distinct, shared = np.unique(np.concatenate(found), return_counts=True)
        return distinct[np.argsort(-shared, kind="stable")].tolist()

    def add(self, keys: Keys) -> None:
        """Enter the next item."""
        if self._count == len(self._keys):
            self._grow()
        slots = keys & np.uint32(self._heads.shape[1] - 1)
        self._keys[self._count] = keys
        self._before[self._count] = self._heads[self._all, slots]
        self._heads[self._all, slots] = self._count
        self._count += 1

    def _grow(self) -> None:
        """Twice the room, and chains as short as before."""
        size = 2 * self._count
        self._keys = np.concatenate([self._keys, np.empty_like(self._keys)])
        self._before = np.empty((size, self.bands), np.int32)
        self._heads = np.full((self.bands, size), -1, np.int32)
        items = np.arange(self._count, dtype=np.int32)
        for band in range(self.bands):
            slots = self._keys[: self._count, band] & np.uint32(size - 1)
            order = np.argsort(slots, kind="stable").astype(np.int32)
            sorted_slots = slots[order]
            same = np.empty(self._count, bool)
            same[0], same[1:] = False, sorted_slots[1:] == sorted_slots[:-1]
            before = np.where(same, np.roll(order, 1), -1)
            self._before[order, band] = before
            self._heads[band, slots] = items  # of several, the last counts: the newest
