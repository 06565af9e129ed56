"""Files of a book: one shard is one safetensors file, written whole or not at all, read by memory map."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from stillroom.contracts.errors import BookError

RECAPTURE = "delete the file and run again: only its rows are captured anew"


class Shard:
    """A shard's rows as memory-mapped arrays; nothing is read until it is asked for.

    Raises:
        BookError: the file is shorter or longer than its own header says, or not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._map = np.memmap(path, np.uint8, "r")
            size = int(self._map[:8].view("<u8")[0])
            header = json.loads(bytes(self._map[8 : 8 + size]))
            self._start = 8 + size
            end = self._start + max(
                entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_"
            )
            if end != len(self._map):
                raise BookError(
                    f"{path.name} is {'cut short' if end > len(self._map) else 'too long'}",
                    got=f"{len(self._map):,} bytes",
                    expected=f"{end:,} bytes",
                    do=RECAPTURE,
                )
            self.keys: NDArray[np.uint8] = self._tensor(header, "keys", "U8").reshape(-1, 16)
            self.offsets: NDArray[np.int64] = self._tensor(header, "offsets", "I64").view("<i8")
            self._checksums: NDArray[np.uint32] = self._tensor(header, "checksums", "U32").view("<u4")
            self.data: NDArray[np.uint8] = self._tensor(header, "data", "U8")
            if not len(self.keys) == len(self._checksums) == len(self.offsets) - 1:
                raise ValueError(f"{len(self.keys)} keys, {len(self._checksums)} checksums")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
            raise BookError(f"{path.name} is not a shard of a lesson book", got=fault, do=RECAPTURE) from None
        except OSError as fault:
            raise BookError(f"{path.name} cannot be read", got=fault, do=RECAPTURE) from None

    def row(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one row: a view into the map.

        Raises:
            BookError: they, or the row's key, are not what was written.
        """
        data = self.data[self.offsets[index] : self.offsets[index + 1]]
        if row_checksum(bytes(self.keys[index]), data.data) != self._checksums[index]:
            raise BookError(
                f"row {index} of {self.name} is not as it was written",
                got=f"another CRC-32 than {self._checksums[index]:08x}",
                do=RECAPTURE,
            )
        return data

    def _tensor(self, header: dict, name: str, dtype: str) -> NDArray[np.uint8]:
        entry = header[name]
        if entry["dtype"] != dtype:
            raise ValueError(f"{name} is {entry['dtype']}, not {dtype}")
        first, last = entry["data_offsets"]
        return self._map[self._start + first : self._start + last]


class KeyIndex:
    """Which row of which shard has a key: 24 bytes a row, however many shards.

    Args:
        keys: for each shard its keys, uint8 `[rows, 16]`.
    """

    def __init__(self, keys: Sequence[NDArray[np.uint8]]) -> None:
        self._starts = np.cumsum([0, *map(len, keys)])
        words = np.concatenate([np.zeros((0, 16), np.uint8), *keys]).view("<u8").reshape(-1, 2)
        self._order = np.argsort(words[:, 0], kind="stable")
        self._words = words[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def find(self, key: str) -> tuple[int, int] | None:
        """The shard's place in the list and the row's place in the shard, or None."""
        first, second = np.frombuffer(bytes.fromhex(key), "<u8")
        at = int(np.searchsorted(self._words[:, 0], first))
        while at < len(self) and self._words[at, 0] == first:
            if self._words[at, 1] == second:
                row = int(self._order[at])
                shard = int(np.searchsorted(self._starts, row, side="right")) - 1
                return shard, row - int(self._starts[shard])
            at += 1
        return None


def shard_bytes(keys: Sequence[str], rows: Sequence[bytes]) -> bytes:
    """The file of these rows."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return save(
        {
            "keys": np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16),
            "offsets": offsets,
            "checksums": np.array(
                [row_checksum(bytes.fromhex(key), row) for key, row in zip(keys, rows, strict=True)],
                np.uint32,
            ),
            "data": np.frombuffer(b"".join(rows), np.uint8),
        }
    )


def row_checksum(key: bytes, data: bytes | memoryview) -> int:
    """CRC-32 (zlib's) of a row's key and bytes: any flipped byte changes it, whichever of the two it is in."""
    return zlib.crc32(data, zlib.crc32(key))


def checksum(path: Path) -> str:
    """blake2b of a whole file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
