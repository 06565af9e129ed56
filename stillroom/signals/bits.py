"""Numbers of a few bits packed end to end, and columns taken one after another from a row's bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_PLACES = 4096


def pack(values: NDArray[np.integer], bits: int) -> Bytes:
    """The values' low `bits` bits (at most 24), one after another, lowest first."""
    spread = (values.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(spread.astype(np.uint8), bitorder="little")


def unpack(data: Bytes, count: int, bits: int) -> NDArray[np.uint32]:
    """The first `count` values of `bits` bits."""
    padded = np.zeros(len(data) + 4, np.uint8)
    padded[:-4] = data
    # The four bytes from each place on as one number: 24 bits and a shift of up to 7 lie within them.
    words = np.ndarray((len(data) + 1,), "<u4", padded, strides=(1,))
    byte, shift = _places(bits, max(_PLACES, 1 << (count - 1).bit_length()) if count else _PLACES)
    found = words[byte[:count]]
    found >>= shift[:count]
    found &= np.uint32((1 << bits) - 1)
    return found


@lru_cache(maxsize=64)
def _places(bits: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Where each value begins: the byte, and the bit in it. The same for every row, so worked out once."""
    start = np.arange(count) * bits
    return start >> 3, (start & 7).astype(np.uint32)


class ColumnReader:
    """Takes columns from the front of a row's bytes, without copying them."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        """The next `count` numbers.

        Raises:
            ValueError: the row is shorter.
        """
        size = count * np.dtype(dtype).itemsize
        if self.at + size > len(self.data):
            raise ValueError("the row is shorter than its columns")
        self.at += size
        return self.data[self.at - size : self.at].view(dtype)

    def packed(self, count: int, bits: int) -> NDArray[np.uint32]:
        """The next `count` numbers of `bits` bits, which fill whole bytes. Errors as in `take`."""
        return unpack(self.take("u1", -(-count * bits // 8)), count, bits)

    def finish(self) -> None:
        """Raise ValueError unless all was taken."""
        if self.at != len(self.data):
            raise ValueError("the row is longer than its columns")
