"""Numbers by content key, at a few dozen bytes each: what is in memory of a file of a million answers."""

from __future__ import annotations

from array import array

_SMALLEST = 1024


class KeyTable:
    """A map from content keys (32 hex digits) to numbers under 2^63: open addressing in one array.

    Between 36 and 72 bytes an entry; a dict of strings takes about 220.
    """

    def __init__(self) -> None:
        self._slots = _SMALLEST
        self._cells = _zeros(_SMALLEST)  # a row: upper and lower half of the key, number + 1
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _place(self, upper: int, lower: int) -> int:
        """The row with this key, or the free one where it belongs."""
        cells, mask = self._cells, self._slots - 1
        slot = lower & mask
        while cells[3 * slot + 2] and (cells[3 * slot] != upper or cells[3 * slot + 1] != lower):
            slot = (slot + 1) & mask
        return 3 * slot

    def get(self, key: str) -> int | None:
        """The number of a key, or None."""
        number = self._cells[self._place(int(key[:16], 16), int(key[16:], 16)) + 2]
        return number - 1 if number else None

    def put(self, key: str, number: int) -> None:
        """Set the number of a key.

        Raises:
            ValueError: the key is none.
        """
        if len(key) != 32:
            raise ValueError(f"{key!r} is not a content key of 32 hex digits")
        self._put(int(key[:16], 16), int(key[16:], 16), number + 1)
        if 3 * self._count > 2 * self._slots:
            self._grow()

    def _put(self, upper: int, lower: int, stored: int) -> None:
        place = self._place(upper, lower)
        self._count += not self._cells[place + 2]
        self._cells[place], self._cells[place + 1], self._cells[place + 2] = upper, lower, stored

    def _grow(self) -> None:
        old, slots = self._cells, self._slots
        self._slots, self._count = 2 * slots, 0
        self._cells = _zeros(self._slots)
        for row in range(0, 3 * slots, 3):
            if old[row + 2]:
                self._put(old[row], old[row + 1], old[row + 2])


def _zeros(slots: int) -> array[int]:
    return array("Q", [0]) * (3 * slots)
