"""Reading a lesson book: its rows by key, each compared with its checksum, and its files with theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.signals.bits import Bytes
from stillroom.signals.codec import Row, decode
from stillroom.signals.head import HEAD, BookHead
from stillroom.signals.header import BookHeader, row_key
from stillroom.signals.index import ShardIndex
from stillroom.signals.kinds import HiddenKind, kind_of
from stillroom.signals.lookup import LOOKUP, Lookup
from stillroom.signals.shards import RECAPTURE, Shard


class BookReader:
    """What a book answers to those who read; `Book` adds writing."""

    def __init__(self, folder: Path, header: BookHeader) -> None:
        self.folder, self.header = folder, header
        self._kind = kind_of(folder, header)
        self._index = ShardIndex(folder)
        self._names: list[str] = []
        self._shards: dict[str, Shard] = {}
        self._places: Lookup | None = None
        # The shard that a writer is filling: the name of the file that it replaces, and its rows.
        self._filling: str | None = None
        self._buffer: dict[str, bytes] = {}
        self._buffered_signals = 0

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        tokenizer: str | None = None,
        template: str | None = None,
        vocab: int | None = None,
        temperature: float | None = None,
    ) -> Self:
        """Open a book for reading; what is given must be what the book was captured with.

        Raises:
            BookError: no book there, a truncated or missing shard, or a book that does not fit what is asked.
        """
        header = BookHeader.read(Path(folder))
        header.require(tokenizer=tokenizer, template=template, vocab=vocab, temperature=temperature)
        return cls(Path(folder), header)

    def __len__(self) -> int:
        plausible, lines = self._index.plausible, self._index.lines
        rows = (lines[name].rows if plausible(name) else len(self._shard(name).keys) for name in self._names)
        return sum(rows) + len(self._buffer)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would be a copy of the file.
        return {**self.__dict__, "_shards": {}, "_places": None}

    @property
    def head(self) -> BookHead | None:
        """The teacher's head in a book of hidden states, compared with its checksum when it is first asked for.

        Raises:
            BookError: it is damaged.
        """
        return self._kind.head if isinstance(self._kind, HiddenKind) else None

    @property
    def signals(self) -> int:
        """Tokens that have a signal."""
        return sum(line.signals for line in self._index.lines.values()) + self._buffered_signals

    def keys(self) -> Iterator[str]:
        """Keys of all rows, in the order they were written."""
        for name in self._names:
            yield from (bytes(key).hex() for key in self._shard(name).keys)
        yield from self._buffer

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def key(self, token_ids: Sequence[int] | Tensor, loss_mask: Sequence[bool] | Tensor) -> str:
        """The key of such a row in this book."""
        return row_key(self.header.tokenizer, token_ids, loss_mask)

    def has(self, key: str) -> bool:
        """Whether the row is in the book, or about to be."""
        return key in self._buffer or self._place(key) is not None

    def row(self, key: str) -> Row:
        """One row.

        Raises:
            BookError: no such row, or its bytes are damaged.
        """
        return self._decode(*self._bytes(key))

    def read(self, keys: Sequence[str]) -> list[Row]:
        """Rows in the order of the keys. Errors as in `row`."""
        return [self.row(key) for key in keys]

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            BookError: naming the shards that differ.
        """
        if unlisted := [name for name in self._names if name not in self._index.lines]:
            raise BookError(
                "shards of the lesson book have no checksum: a writer was killed, or is still at work",
                got=", ".join(unlisted),
                expected="a line for each in index.jsonl",
                do="run the capture again: it repairs the index and goes on",
            )
        bad = [name for name in self._names if not self._index.intact(name)]
        if not self._lookup().intact():
            bad.append(LOOKUP)
        if self.header.head is not None and not self.header.head.intact(self.folder):
            bad.append(HEAD)
        if bad:
            raise BookError(
                f"{len(bad)} of the lesson book's files are not as they were written",
                got=", ".join(bad),
                expected="files with the sizes and checksums in index.jsonl and header.json",
                do=RECAPTURE,
            )

    def _decode(self, data: np.ndarray, where: str) -> Row:
        try:
            return decode(data, self.header.vocab, self._kind)
        except (ValueError, IndexError, RuntimeError) as fault:
            raise BookError(f"a row in {where} is damaged", got=fault, do=RECAPTURE) from None

    def _bytes(self, key: str) -> tuple[Bytes, str]:
        """A row's bytes, compared with their checksum, and where they lie."""
        if (data := self._buffer.get(key)) is not None:
            return np.frombuffer(data, np.uint8), "the row in hand"
        if (found := self._place(key)) is None:
            raise BookError(
                "the lesson book holds no signals for this row",
                got=f"key {key}",
                expected=f"one of its {len(self):,} rows",
                do="capture it: its tokens, its mask or the tokenizer differ from every row's",
            )
        shard, row = found
        return shard.row(row), shard.name

    def _place(self, key: str) -> tuple[Shard, int] | None:
        """The shard and the row's place in it, or None.

        Raises:
            BookError: the key lay where another lies now.
        """
        wanted = bytes.fromhex(key)
        lookup = self._lookup()
        while True:
            for number, row in lookup.candidates(wanted):
                shard = self._shard(self._names[number])
                if row < len(shard.keys):
                    if bytes(shard.keys[row]) == wanted:
                        return shard, row
                    shard.row(row)  # another key that begins alike, or a damaged one: then this raises
            if not lookup.mended():
                return None

    def _lookup(self) -> Lookup:
        if self._places is None:
            plausible, lines = self._index.plausible, self._index.lines
            digests = [lines[name].blake2b if plausible(name) else None for name in self._names]
            # Not a method of ours: a circle of references would keep a writer's lock until it is collected.
            keys = partial(_keys, self.folder, self._shards, self._names)
            self._places = Lookup(self.folder, digests, keys)
        return self._places

    def _key_bytes(self) -> NDArray[np.uint8]:
        """uint8 `[rows, 16]`, in the order of `keys`."""
        buffered = np.frombuffer(bytes.fromhex("".join(self._buffer)), np.uint8).reshape(-1, 16)
        return np.concatenate([*(self._shard(name).keys for name in self._names), buffered])

    def _refuse_lost(self) -> None:
        if self.header.head is not None:
            self.header.head.refuse_lost(self.folder)
        if lost := self._index.lost:
            raise BookError(
                "shards of the lesson book are missing", got=", ".join(lost), do="run the capture again"
            )

    def _shard(self, name: str) -> Shard:
        return _opened(self.folder, self._shards, name)

    def _find_shards(self) -> None:
        """Which shards there are. Only those without a plausible line are opened; a truncated one is refused here."""
        self._names = [name for name in self._index.sizes if name != self._filling]
        for name in self._names:
            if not self._index.plausible(name):
                self._shard(name)


def _opened(folder: Path, shards: dict[str, Shard], name: str) -> Shard:
    if name not in shards:
        shards[name] = Shard(folder / name)
    return shards[name]


def _keys(folder: Path, shards: dict[str, Shard], names: list[str], number: int) -> NDArray[np.uint8]:
    return _opened(folder, shards, names[number]).keys
