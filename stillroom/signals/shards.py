"""Files of a book: one shard is one safetensors file, written whole or not at all, read by memory map."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from stillroom.contracts.errors import BookError

RECAPTURE = "delete the file and run again: only its rows are captured anew"
_TENSORS = {"keys": "U8", "offsets": "I64", "checksums": "U32", "data": "U8"}


class Shard:
    """A shard's rows as memory-mapped arrays; nothing is read until it is asked for.

    Raises:
        BookError: the file is shorter or longer than its own header says, or not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            tensors = mapped_tensors(path, _TENSORS)
            self.keys: NDArray[np.uint8] = tensors["keys"].reshape(-1, 16)
            self.offsets: NDArray[np.int64] = tensors["offsets"].view("<i8")
            self._checksums: NDArray[np.uint32] = tensors["checksums"].view("<u4")
            self.data: NDArray[np.uint8] = tensors["data"]
            if not len(self.keys) == len(self._checksums) == len(self.offsets) - 1:
                raise ValueError(f"{len(self.keys)} keys, {len(self._checksums)} checksums")
        except ValueError as fault:
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


def mapped_tensors(path: Path, wanted: Mapping[str, str]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of a safetensors file's tensors, memory-mapped.

    Args:
        path: the file.
        wanted: names of tensors, and the type that each must have, as safetensors calls it.

    Raises:
        BookError: the file is shorter or longer than its own header says.
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    # A plain array over the map: slices of numpy's own class for maps cost several times as much.
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    try:
        size = int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8 : 8 + size]))
        start = 8 + size
        end = start + max(entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_")
        if end != len(data):
            raise BookError(
                f"{path.name} is {'cut short' if end > len(data) else 'too long'}",
                got=f"{len(data):,} bytes",
                expected=f"{end:,} bytes",
                do=RECAPTURE,
            )
        found = {}
        for name, dtype in wanted.items():
            if header[name]["dtype"] != dtype:
                raise ValueError(f"{name} is {header[name]['dtype']}, not {dtype}")
            first, last = header[name]["data_offsets"]
            found[name] = data[start + first : start + last]
        return found
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as fault:
        raise ValueError(fault) from None


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
