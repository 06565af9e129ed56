"""lookup.safetensors: in which shard a key's row lies, sorted beforehand and searched on disk.

It follows from the shards and is a shortcut only: a book without it, or with one that is older than the book or
damaged, is read all the same, with that part of the order made anew in memory. What it says is never taken on trust:
a row that it points at is compared with the whole key, and the first key that it lacks has it compared with its
checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import whole_file
from stillroom.signals.shards import mapped_tensors

LOOKUP = "lookup.safetensors"
_PIECE = 1 << 18
"""Rows that are sorted at once while the file is written."""
_YOUNG = 1 << 18
"""Rows of new shards that may lie in memory before the file is written anew; for large books a quarter of its rows."""

_CHECKSUM = 16
_READ = 1 << 20

Entries = NDArray[np.uint64]
"""`[rows, 2]`: the first 8 bytes of a key as a little-endian number, and shard * 2^32 + row; in rising order."""


class Lookup:
    """Where rows lie, by key: the mapped file, and sorted arrays for the shards that it does not cover.

    Args:
        folder: the book's.
        digests: blake2b of each shard, 32 hex digits, in the order of their names; None where it is not known, so
            that the file cannot speak for that shard.
        keys: gives the keys of a shard by its number, uint8 `[rows, 16]`.
    """

    def __init__(
        self, folder: Path, digests: Sequence[str | None], keys: Callable[[int], NDArray[np.uint8]]
    ) -> None:
        self.path, self._digests, self._keys = folder / LOOKUP, list(digests), keys
        self._shards: NDArray[np.uint8]
        self._file: Entries
        self._covered: int
        self._checked: bool
        self._young: list[Entries] = []
        self._map()
        self._read_from(self._covered)

    def candidates(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Shard and row of all keys that begin as this one does: nearly always one or none."""
        beginning = np.frombuffer(key, "<u8", 1)[0]
        limit = self._covered << 32
        for entries in (self._file, *self._young):
            at = int(entries[:, 0].searchsorted(beginning))
            while at < len(entries) and entries[at, 0] == beginning:
                place = int(entries[at, 1])
                if entries is not self._file or place < limit:
                    yield place >> 32, place & 0xFFFFFFFF
                at += 1

    def mended(self) -> bool:
        """Compare the file with its checksum, once; a damaged one is given up, and True says to search again."""
        if self._checked:
            return False
        self._checked = True
        if self.intact():
            return False
        self._forget()
        self._read_from(0)
        return True

    def intact(self) -> bool:
        """Whether the file, if there is one, is as it was written."""
        try:
            with self.path.open("rb") as file:
                left, summed = file.seek(0, 2) - _CHECKSUM, hashlib.blake2b(digest_size=_CHECKSUM)
                file.seek(0)
                while left > 0 and (part := file.read(min(left, _READ))):
                    summed.update(part)
                    left -= len(part)
                return file.read() == summed.digest()
        except FileNotFoundError:
            return True

    def add(self, digest: str) -> None:
        """Take in a new shard, the last by name."""
        self._digests.append(digest)
        self._push(_entries(self._keys(len(self._digests) - 1), len(self._digests) - 1))
        if sum(map(len, self._young)) > max(_YOUNG, len(self._file) // 4):
            self.save()

    def save(self) -> None:
        """Write the file, unless it covers just these shards.

        Raises:
            StorageFault: the disk does not take it; the old file stays.
        """
        said = [bytes(digest).hex() for digest in self._shards]
        if None in self._digests or said == self._digests:
            return
        with whole_file(self.path) as file:
            digests = bytes.fromhex("".join(filter(None, self._digests)))
            _write(file, digests, [self._file, *self._young], self._covered << 32)
        self._young = []
        self._map()

    def _map(self) -> None:
        try:
            tensors = mapped_tensors(self.path, {"shards": "U8", "entries": "U64", "checksum": "U8"})
            shards = tensors["shards"].reshape(-1, 16)
            entries = tensors["entries"].view("<u8").reshape(-1, 2)
        except (BookError, OSError, ValueError):
            self._forget()
            return
        self._shards, self._file, self._checked = shards, entries, False
        pairs = zip((bytes(digest).hex() for digest in shards), self._digests, strict=False)
        agree = [said == known for said, known in pairs]
        self._covered = agree.index(False) if False in agree else len(agree)

    def _forget(self) -> None:
        self._shards, self._file = np.zeros((0, 16), np.uint8), np.zeros((0, 2), np.uint64)
        self._covered, self._checked = 0, True

    def _read_from(self, first: int) -> None:
        self._young = []
        for shard in range(first, len(self._digests)):
            self._push(_entries(self._keys(shard), shard))

    def _push(self, entries: Entries) -> None:
        """Keep few arrays, each at least twice as long as the next, by joining those that are alike in length."""
        self._young.append(entries)
        while len(self._young) > 1 and len(self._young[-2]) < 2 * len(self._young[-1]):
            pair = self._young[-2:]
            self._young[-2:] = [np.concatenate(list(_merged(pair)))]


def _entries(keys: NDArray[np.uint8], shard: int) -> Entries:
    beginnings = np.ascontiguousarray(keys).view("<u8").reshape(-1, 2)[:, 0]
    places = (np.uint64(shard) << np.uint64(32)) + np.arange(len(keys), dtype=np.uint64)
    return np.stack([beginnings, places], axis=1)[np.argsort(beginnings, kind="stable")]


def _merged(parts: Sequence[Entries], limit: int | None = None) -> Iterator[Entries]:
    """All entries in order, a piece at a time. Keys are hashes, so equal shares of their range hold equally many.

    With a limit, entries of the first part from that place on are left out.
    """
    pieces = sum(map(len, parts)) // _PIECE + 1
    edges = np.array([(number << 64) // pieces for number in range(1, pieces)], np.uint64)
    cuts = [[0, *part[:, 0].searchsorted(edges).tolist(), len(part)] for part in parts]
    for number in range(pieces):
        runs = [part[cut[number] : cut[number + 1]] for part, cut in zip(parts, cuts, strict=True)]
        if limit is not None:
            runs[0] = runs[0][runs[0][:, 1] < limit]
        piece = np.concatenate(runs)
        yield piece[np.argsort(piece[:, 0], kind="stable")]


def _write(file: IO[bytes], digests: bytes, parts: Sequence[Entries], limit: int) -> None:
    rows = sum(map(len, _merged(parts, limit)))
    sizes = {"shards": len(digests), "entries": 16 * rows, "checksum": _CHECKSUM}
    shapes = {"shards": [len(digests) // 16, 16], "entries": [rows, 2], "checksum": [_CHECKSUM]}
    header, start = {}, 0
    for name, size in sizes.items():
        offsets = [start, start + size]
        header[name] = {
            "dtype": "U64" if name == "entries" else "U8",
            "shape": shapes[name],
            "data_offsets": offsets,
        }
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    summed = hashlib.blake2b(digest_size=_CHECKSUM)
    beginning = (len(text).to_bytes(8, "little"), text, digests)
    for data in chain(beginning, (piece.astype("<u8").tobytes() for piece in _merged(parts, limit))):
        summed.update(data)
        file.write(data)
    file.write(summed.digest())
