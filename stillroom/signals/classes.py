"""A book of class logits: what a teacher that chooses among classes thought of each text, whole, four bytes a class.

A folder of `classes-NNNNN.safetensors`, each with `keys` uint8 [rows, 16], `logits` float32 [rows, classes] and
`checksums` uint32 [rows] (CRC-32 of a row's key and logits), and `classes.json` with the names of the classes. Shards are
written whole, so that a killed capture goes on with the next one; a row is found by its key, whatever its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import read_json, remove_partial, write_atomically, write_json
from stillroom.signals.shards import mapped_tensors, row_checksum

SHARD = 16_384
"""Rows of a shard."""
_NAMES = "classes.json"
_TENSORS = {"keys": "U8", "logits": "F32", "checksums": "U32"}


class ClassBook:
    """What a folder holds, mapped into memory; read by key.

    Args:
        folder: written by `write`.

    Raises:
        BookError: there is no book, or a shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / _NAMES).is_file():
            raise BookError(
                "there is no book of classes",
                got=str(folder),
                expected=f"a folder with {_NAMES}, as the teach stage writes it",
                do="run the recipe again: the teacher answers anew",
            )
        self.folder = folder
        self.labels: list[str] = read_json(folder / _NAMES)["labels"]
        self._shards = [_Shard(path, len(self.labels)) for path in _paths(folder)]
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
        # The first half of each key, sorted; the whole key is compared where the row lies.
        front = np.concatenate([np.empty(0, ">u8"), *(shard.front for shard in self._shards)])
        self._order = front.argsort(kind="stable")
        self._front = front[self._order]

    def __len__(self) -> int:
        return len(self._front)

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    def __getitem__(self, key: str) -> NDArray[np.float32]:
        """The logits float32 [classes] of a text.

        Raises:
            BookError: there are none, or they are not as they were written.
        """
        place = self._place(key)
        if place is None:
            raise BookError(
                "the book of classes holds nothing about this text",
                got=f"key {key}",
                expected=f"one of its {len(self):,} rows",
                do="run the recipe again: what is missing is asked",
            )
        return place[0].row(place[1])

    def _place(self, key: str) -> tuple[_Shard, int] | None:
        wanted = bytes.fromhex(key)
        front = np.frombuffer(wanted[:8], ">u8")[0]
        at = int(np.searchsorted(self._front, front))
        while at < len(self._front) and self._front[at] == front:
            row = int(self._order[at])
            number = int(np.searchsorted(self._ends, row, side="right"))
            shard = self._shards[number]
            inside = row - (int(self._ends[number]) - len(shard.keys))
            if bytes(shard.keys[inside]) == wanted:
                return shard, inside
            at += 1
        return None

    @staticmethod
    def write(
        folder: Path, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], NDArray[np.float32]]]
    ) -> Iterator[int]:
        """Write rows behind the shards that are there, yielding how many each new shard took.

        Args:
            folder: of the book; made if it is not there.
            labels: names of the classes.
            rows: keys of 32 hex digits and logits [rows, classes], of SHARD rows each but the last.

        Raises:
            StorageFault: the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        write_json(folder / _NAMES, {"labels": list(labels)})
        for number, (keys, logits) in enumerate(rows, len(_paths(folder))):
            packed = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16)
            values = np.ascontiguousarray(logits, dtype="<f4")
            sums = [row_checksum(bytes(key), row.tobytes()) for key, row in zip(packed, values, strict=True)]
            tensors = {"keys": packed, "logits": values, "checksums": np.array(sums, np.uint32)}
            write_atomically(folder / f"classes-{number:05}.safetensors", save(tensors))
            yield len(keys)

    @staticmethod
    def rows_in(folder: Path) -> int:
        """Rows of the whole shards that a folder holds; 0 where there is none."""
        return sum(len(mapped_tensors(path, {"keys": "U8"})["keys"]) // 16 for path in _paths(folder))


class _Shard:
    def __init__(self, path: Path, classes: int) -> None:
        self.path = path
        try:
            tensors = mapped_tensors(path, _TENSORS)
            self.keys = tensors["keys"].reshape(-1, 16)
            self._logits = tensors["logits"].view("<f4").reshape(-1, classes)
            self._checksums = tensors["checksums"].view("<u4")
            if not len(self.keys) == len(self._logits) == len(self._checksums):
                raise ValueError(f"{len(self.keys)} keys and {len(self._logits)} rows of {classes} classes")
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None

    @property
    def front(self) -> NDArray[np.uint64]:
        """The first half of each key."""
        return np.ascontiguousarray(self.keys[:, :8]).view(">u8").ravel()

    def row(self, at: int) -> NDArray[np.float32]:
        """One row's logits, compared with their checksum."""
        logits = self._logits[at]
        if row_checksum(bytes(self.keys[at]), logits.tobytes()) != self._checksums[at]:
            raise self._damaged(f"row {at} is not as it was written")
        return logits

    def _damaged(self, got: object) -> BookError:
        do = f"remove {self.path.parent} and run the recipe again: the teacher answers anew"
        return BookError(f"{self.path.name} is damaged", got=got, do=do)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("classes-*.safetensors"))
