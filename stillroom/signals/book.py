"""The lesson book: rows of tokens and the teacher's signals, found by their content.

    header.json                what all rows share; nothing is read at another temperature or tokenizer
    index.jsonl                a line a shard: name, rows, signals, bytes, blake2b
    shard-00000.safetensors    keys, offsets and packed rows (see `stillroom.signals.codec`)

Rows are looked up by a hash of what they hold, never by a number, so that no shuffling, filtering or resuming
can pair a sequence with another's signals. Shards are written whole or not at all: a killed writer costs the
rows since the last shard, and the next writer goes on after it, making the same files as one never killed.
One process writes at a time; any number read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import remove_partial, write_atomically
from stillroom.signals.codec import Row, decode, encode
from stillroom.signals.codes import Signals
from stillroom.signals.header import BookHeader, row_key
from stillroom.signals.shards import RECAPTURE, KeyIndex, Shard, checksum, shard_bytes


class Book:
    """A folder of captured rows. `create` to write (and go on writing), `open` to read.

    A reader holds 24 bytes a row and maps shards into memory; it may be sent to other processes. A writer
    also holds the rows of the shard it is filling. As a context manager it closes when the block succeeds.
    """

    def __init__(self, folder: Path, header: BookHeader, *, writable: bool) -> None:
        self.folder, self.header, self._writable = folder, header, writable
        self._shards: dict[str, Shard] = {}
        self._buffer: dict[str, bytes] = {}
        self._buffered_signals = 0
        self._filling: str | None = None
        self._lines = self._read_lines()
        if writable:
            self._repair()
            self._reopen_last()
        self._names: list[str] = []
        self._find_keys()

    @classmethod
    def create(cls, folder: str | Path, header: BookHeader) -> Self:
        """Begin a book, or go on with one of the same header; half-written files of a killed writer go.

        Raises:
            BookError: the folder holds a book of another header, or a damaged one.
            StorageFault: the disk does not take it.
        """
        folder = Path(folder)
        if (folder / "header.json").exists():
            BookHeader.read(folder).require(**vars(header))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            header.write(folder)
        return cls(folder, header, writable=True)

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
        return cls(Path(folder), header, writable=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()

    def __len__(self) -> int:
        return len(self._places) + len(self._buffer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # a pickled memory map would be a copy of the file

    @property
    def signals(self) -> int:
        """Tokens that have a signal."""
        return sum(line["signals"] for line in self._lines.values()) + self._buffered_signals

    def keys(self) -> Iterator[str]:
        """Keys of all rows, in the order they were written."""
        for name in self._names:
            yield from (bytes(key).hex() for key in self._shard(name).keys)
        yield from self._buffer

    def key(self, token_ids: Sequence[int] | Tensor, loss_mask: Sequence[bool] | Tensor) -> str:
        """The key of such a row in this book."""
        return row_key(self.header.tokenizer, token_ids, loss_mask)

    def has(self, key: str) -> bool:
        """Whether the row is in the book, or about to be."""
        return key in self._buffer or self._places.find(key) is not None

    def row(self, key: str) -> Row:
        """One row.

        Raises:
            BookError: no such row, or its bytes are damaged.
        """
        if (data := self._buffer.get(key)) is not None:
            return self._decode(np.frombuffer(data, np.uint8), "the row in hand")
        if (found := self._places.find(key)) is None:
            raise BookError(
                "the lesson book holds no signals for this row",
                got=f"key {key}",
                expected=f"one of its {len(self):,} rows",
                do="capture it: its tokens, its mask or the tokenizer differ from every row's",
            )
        name = self._names[found[0]]
        return self._decode(self._shard(name).row(found[1]), name)

    def read(self, keys: Sequence[str]) -> list[Row]:
        """Rows in the order of the keys. Errors as in `row`."""
        return [self.row(key) for key in keys]

    def append(
        self, token_ids: Sequence[int] | Tensor, loss_mask: Sequence[bool] | Tensor, targets: Signals
    ) -> str:
        """Add a row (see `Row`) and return its key; a row that the book has is left as it is.

        The row is on disk once its shard is full, or after `close`.

        Raises:
            BookError: the row does not fit the book.
            StorageFault: the disk does not take the shard.
        """
        if not self._writable:
            raise ValueError("this book was opened for reading; use Book.create to write")
        row = Row(
            torch.as_tensor(token_ids, dtype=torch.int32).cpu(),
            torch.as_tensor(loss_mask, dtype=torch.bool).cpu(),
            targets,
        )
        key = self.key(row.token_ids, row.loss_mask)
        if self.has(key):
            return key
        self._check(row)
        self._buffer[key] = encode(row, self.header.vocab)
        self._buffered_signals += targets.tokens
        if self._buffered_signals >= self.header.shard_tokens:
            self._flush()
        return key

    def close(self) -> None:
        """Write what is buffered. A later writer goes on filling that shard."""
        if self._buffer:
            self._flush()

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            BookError: naming the shards that differ.
        """
        if unlisted := [name for name in self._names if name not in self._lines]:
            raise BookError(
                "shards of the lesson book have no checksum: a writer was killed, or is still at work",
                got=", ".join(unlisted),
                expected="a line for each in index.jsonl",
                do="run the capture again: it repairs the index and goes on",
            )
        if bad := [name for name in self._names if not self._intact(name)]:
            raise BookError(
                f"{len(bad)} of the lesson book's {len(self._names)} shards are not as they were written",
                got=", ".join(bad),
                expected="files with the sizes and checksums in index.jsonl",
                do=RECAPTURE,
            )

    def _check(self, row: Row) -> None:
        header, targets = self.header, row.targets
        ids, mask = row.token_ids, row.loss_mask
        kind = "top-k" if targets.bucket else "head+draws"
        selected, largest = int(mask.sum()), max([-1, *(int(t.max()) for t in (ids, targets.ids) if len(t))])
        header.require(temperature=targets.temperature, kind=kind)
        for fits, got, expected in (
            (ids.shape == mask.shape == (len(ids),), f"mask {tuple(mask.shape)}", f"shape ({len(ids)},)"),
            (not bool(mask[:1].any()), "a signal for the first token", "none: nothing comes before it"),
            (selected == targets.tokens, f"{targets.tokens} signals", f"{selected}, one a selected token"),
            (largest < header.vocab, f"token id {largest}", f"ids below {header.vocab}"),
            (not len(ids) or int(ids.min()) >= 0, "a negative token id", "ids from 0"),
        ):
            if not fits:
                raise BookError("a row does not fit the lesson book", got=got, expected=expected)

    def _decode(self, data: np.ndarray, where: str) -> Row:
        header = self.header
        try:
            return decode(data, header.vocab, bucket=header.kind == "top-k", temperature=header.temperature)
        except (ValueError, IndexError, RuntimeError) as fault:
            raise BookError(f"a row in {where} is damaged", got=fault, do=RECAPTURE) from None

    # Files.

    def _on_disk(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("shard-*.safetensors"))

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            self._shards[name] = Shard(self.folder / name)
        return self._shards[name]

    def _find_keys(self) -> None:
        self._names = [name for name in self._on_disk() if name != self._filling]
        self._places = KeyIndex([self._shard(name).keys for name in self._names])

    def _intact(self, name: str) -> bool:
        line, path = self._lines[name], self.folder / name
        return path.stat().st_size == line["bytes"] and checksum(path) == line["blake2b"]

    def _read_lines(self) -> dict[str, dict[str, Any]]:
        """The index by shard. A line that cannot be read counts as missing; one without its file is a loss."""
        path, lines, shards = self.folder / "index.jsonl", {}, set(self._on_disk())
        for text in path.read_bytes().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
                lines[str(line["shard"])] = {
                    "shard": str(line["shard"]),
                    "rows": int(line["rows"]),
                    "signals": int(line["signals"]),
                    "bytes": int(line["bytes"]),
                    "blake2b": str(line["blake2b"]),
                }
            except (ValueError, KeyError, TypeError):
                continue
        if (lost := sorted(set(lines) - shards)) and not self._writable:
            raise BookError(
                "shards of the lesson book are missing", got=", ".join(lost), do="run the capture again"
            )
        return {name: line for name, line in lines.items() if name in shards}

    def _write_lines(self) -> None:
        lines = [json.dumps(self._lines[name]) for name in sorted(self._lines)]
        write_atomically(self.folder / "index.jsonl", "".join(line + "\n" for line in lines))

    def _add_line(self, name: str, rows: int, signals: int) -> None:
        path = self.folder / name
        size = path.stat().st_size
        line = {"shard": name, "rows": rows, "signals": signals, "bytes": size, "blake2b": checksum(path)}
        self._lines[name] = line
        self._write_lines()

    def _repair(self) -> None:
        """Take away what a killed writer left half-written, and give whole shards without a line theirs."""
        remove_partial(self.folder)
        for name in self._on_disk():
            if name not in self._lines:
                rows = [
                    self._decode(self._shard(name).row(i), name) for i in range(len(self._shard(name).keys))
                ]
                self._add_line(name, len(rows), sum(row.targets.tokens for row in rows))

    def _reopen_last(self) -> None:
        """Go on filling the last shard if it is not full, so that a pause leaves no trace in the files."""
        name = max(self._lines, default=None)
        if name is None or self._lines[name]["signals"] >= self.header.shard_tokens:
            return
        if not self._intact(name):
            raise BookError(
                f"{name} is not as it was written", expected="the checksum in index.jsonl", do=RECAPTURE
            )
        shard = Shard(self.folder / name)
        self._buffer = {bytes(key).hex(): bytes(shard.row(place)) for place, key in enumerate(shard.keys)}
        self._buffered_signals = self._lines.pop(name)["signals"]
        self._filling = name
        # From here on the file may be replaced by a longer one; its old line would call that one damaged.
        self._write_lines()

    def _flush(self) -> None:
        free = (name for i in itertools.count() if (name := f"shard-{i:05d}.safetensors") not in self._lines)
        name = self._filling or next(free)
        write_atomically(self.folder / name, shard_bytes(list(self._buffer), list(self._buffer.values())))
        self._shards.pop(name, None)
        self._add_line(name, len(self._buffer), self._buffered_signals)
        self._buffer, self._buffered_signals, self._filling = {}, 0, None
        self._find_keys()
