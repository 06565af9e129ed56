"""The lesson book: rows of tokens and the teacher's signals, found by their content.

    header.json                what all rows share; nothing is read at another temperature or tokenizer
    index.jsonl                a line a shard: name, rows, signals, bytes, blake2b
    lookup.safetensors         where each key's row lies, sorted; follows from the shards
    head.safetensors           the teacher's head, in a book of hidden states alone (see `stillroom.signals.head`)
    shard-00000.safetensors    keys, offsets, checksums and packed rows (see `stillroom.signals.codec`)
    .lock                      empty; locked by the one process that writes

Rows are looked up by a hash of what they hold, never by a number, so that no shuffling, filtering or resuming
can pair a sequence with another's signals. Every row has a checksum that is compared whenever it is read.
Shards are written whole or not at all: a killed writer or a full disk costs the rows since the last shard, and
the next writer goes on after it, making the same files as one never stopped. docs/lesson-books.md specifies
every byte.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import remove_partial, write_atomically
from stillroom.signals.codec import Row, encode, signals_in
from stillroom.signals.counter import uniform
from stillroom.signals.head import BookHead, put_head
from stillroom.signals.header import SHARED, BookHeader
from stillroom.signals.index import shards_in
from stillroom.signals.kinds import AnySignals
from stillroom.signals.lock import WriterLock
from stillroom.signals.reading import BookReader
from stillroom.signals.shards import RECAPTURE, Shard, shard_bytes


class Book(BookReader):
    """A folder of captured rows. `create` to write (and go on writing), `open` to read.

    A reader maps files into memory and holds nothing of a row; it may be sent to other processes. A writer
    holds the rows of the shard it is filling, and up to 4 bytes for each row of the book. As a context manager it
    closes when the block succeeds. Iterating gives the keys.
    """

    def __init__(self, folder: Path, header: BookHeader, lock: WriterLock | None = None) -> None:
        super().__init__(folder, header)
        self._lock = lock
        if lock is not None:
            self._repair()
            self._reopen_last()
        else:
            self._refuse_lost()
        self._find_shards()

    @classmethod
    def create(cls, folder: str | Path, header: BookHeader, head: BookHead | None = None) -> Self:
        """Begin a book, or go on with one of the same header; half-written files of a killed writer go.

        Args:
            folder: the book's.
            header: what its rows share.
            head: the head of a book of hidden states, written where it is missing or damaged.

        Raises:
            BookError: the folder holds a book of another header, or a damaged one; or its head must be written and
                is not given.
            RunError: another program is writing it.
            StorageFault: the disk does not take it.
        """
        folder = Path(folder)
        lock = WriterLock(folder)
        try:
            if (folder / "header.json").exists():
                BookHeader.read(folder).require(**vars(header))
            if header.head is not None:
                put_head(folder, header.head, head)
            if not (folder / "header.json").exists():
                header.write(folder)
            return cls(folder, header, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def merge(cls, sources: Sequence[str | Path], out: str | Path) -> Self:
        """Write a book that holds the rows of all sources, and return it opened for reading.

        Rows are copied one by one, their bytes as they are; of rows with the same key the first is kept. To mix
        what several teachers said of the same tokens, use `stillroom.signals.mix`. A killed merge is continued
        by running it again.

        Raises:
            BookError: the books differ in more than teacher, budget and shard size, or one is damaged.
            RunError, StorageFault: as in `create`.
        """
        books = [cls.open(source) for source in sources]
        header = functools.reduce(BookHeader.joined, (book.header for book in books))
        with cls.create(out, header, books[0].head) as merged:
            for book in books:
                for key in book:
                    merged.copy(book, key)
        return cls.open(out)

    def split(
        self,
        train: str | Path,
        validation: str | Path,
        *,
        share: float | None = None,
        rows: int | None = None,
        seed: int = 0,
    ) -> tuple[Self, Self]:
        """Write two books that together hold this one's rows, and return them opened for reading.

        A row's side depends on its key and the seed: with a share, rows keep their sides when the book grows.
        Rows that share a prompt can come on different sides; split the prompts before capture where that matters.

        Args:
            train: folder of the larger book.
            validation: folder of the smaller book.
            share: of the rows that go to validation, each with this probability; or
            rows: how many go there.
            seed: of the choice.

        Raises:
            ValueError: neither or both of share and rows.
            BookError: a side would be empty, or a folder already holds rows of another split.
            RunError, StorageFault: as in `create`.
        """
        if (share is None) == (rows is None):
            raise ValueError("split wants either share or rows")
        seeds = torch.from_numpy(self._key_bytes().view("<i8")[:, 0].copy())
        chance = uniform(seeds, seed).numpy()
        if rows is None:
            chosen = chance < share
        else:
            chosen = np.zeros(len(chance), bool)
            chosen[np.argsort(chance, kind="stable")[:rows]] = True
        if not 0 < chosen.sum() < len(chosen):
            raise BookError(
                "a side of the split would be empty",
                got=f"{int(chosen.sum()):,} of {len(chosen):,} rows for validation",
                do="choose another share or number of rows",
            )
        for folder, wanted in ((train, ~chosen), (validation, chosen)):
            self._write_part(folder, wanted)
        return type(self).open(train), type(self).open(validation)

    def _write_part(self, folder: str | Path, wanted: NDArray[np.bool_]) -> None:
        with type(self).create(folder, self.header, self.head) as part:
            ours, theirs = (keys.view("S16")[:, 0] for keys in (self._key_bytes()[wanted], part._key_bytes()))
            if strangers := int((~np.isin(theirs, ours)).sum()):
                raise BookError(
                    f"{folder} holds rows that do not belong to this side of the split",
                    got=f"{strangers:,} rows",
                    do="split into new folders",
                )
            for key in itertools.compress(self, wanted):
                part.copy(self, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._release()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lock": None}  # a copy of a writer only reads

    def append(
        self, token_ids: Sequence[int] | Tensor, loss_mask: Sequence[bool] | Tensor, targets: AnySignals
    ) -> str:
        """Add a row (see `Row`) and return its key; a row that the book has is left as it is.

        The row is on disk once its shard is full, or after `close`.

        Raises:
            BookError: the row does not fit the book.
            StorageFault: the disk does not take the shard.
        """
        self._require_lock()
        row = Row(
            torch.as_tensor(token_ids, dtype=torch.int32).cpu(),
            torch.as_tensor(loss_mask, dtype=torch.bool).cpu(),
            targets,
        )
        key = self.key(row.token_ids, row.loss_mask)
        if self.has(key):
            return key
        self._check(row)
        self._put(key, encode(row, self.header.vocab), targets.tokens)
        return key

    def copy(self, source: BookReader, key: str) -> bool:
        """Take a row over from another book, its bytes as they are; False where this book has such a row.

        Raises:
            BookError: the books do not fit together, or the row is damaged or not there.
            StorageFault: the disk does not take the shard.
        """
        self._require_lock()
        self.header.require(**{name: getattr(source.header, name) for name in SHARED})
        if self.has(key):
            return False
        data, _ = source._bytes(key)
        self._put(key, data.tobytes(), signals_in(data))
        return True

    def close(self) -> None:
        """Write what is buffered and let the next writer in, who goes on filling that shard.

        Raises:
            StorageFault: the disk does not take it; what is on disk is whole, and closing can be tried again.
        """
        if self._lock is not None:
            if self._buffer:
                self._flush()
            self._lookup().save()
            self._release()

    def _check(self, row: Row) -> None:
        self._kind.check(row.targets)
        ids, mask, signals, vocab = row.token_ids, row.loss_mask, row.targets.tokens, self.header.vocab
        selected, largest = int(mask.sum()), int(ids.max()) if len(ids) else -1
        for fits, got, expected in (
            (ids.shape == mask.shape == (len(ids),), f"mask {tuple(mask.shape)}", f"shape ({len(ids)},)"),
            (not bool(mask[:1].any()), "a signal for the first token", "none: nothing comes before it"),
            (selected == signals, f"{signals} signals", f"{selected}, one a selected token"),
            (largest < vocab, f"token id {largest}", f"ids below {vocab}"),
            (not len(ids) or int(ids.min()) >= 0, "a negative token id", "ids from 0"),
        ):
            if not fits:
                raise BookError("a row does not fit the lesson book", got=got, expected=expected)

    # Writing.

    def _require_lock(self) -> None:
        if self._lock is None:
            raise ValueError("this book was opened for reading, or is closed; use Book.create to write")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _put(self, key: str, data: bytes, signals: int) -> None:
        self._buffer[key] = data
        self._buffered_signals += signals
        if self._buffered_signals >= self.header.shard_tokens:
            self._flush()

    def _repair(self) -> None:
        """Take away what a killed writer left half-written, and give whole shards without a line theirs."""
        remove_partial(self.folder)
        for name in shards_in(self.folder):
            if name not in self._index.lines:
                shard = self._shard(name)
                rows = [shard.row(i) for i in range(len(shard.keys))]
                self._index.add(name, rows=len(rows), signals=sum(map(signals_in, rows)))

    def _reopen_last(self) -> None:
        """Go on filling the last shard if it is not full, so that a pause leaves no trace in the files."""
        name = max(self._index.lines, default=None)
        if name is None or self._index.lines[name].signals >= self.header.shard_tokens:
            return
        if not self._index.intact(name):
            raise BookError(
                f"{name} is not as it was written", expected="the checksum in index.jsonl", do=RECAPTURE
            )
        shard = Shard(self.folder / name)
        self._buffer = {bytes(key).hex(): shard.row(place).tobytes() for place, key in enumerate(shard.keys)}
        self._filling = name
        # From here on the file may be replaced by a longer one; its old line would call that one damaged.
        self._buffered_signals = self._index.drop(name).signals

    def _flush(self) -> None:
        free = (
            name for i in itertools.count() if (name := f"shard-{i:05d}.safetensors") not in self._index.lines
        )
        # Remembered first: another attempt, after a full disk, must not write the rows a second time elsewhere.
        self._filling = self._filling or next(free)
        name = self._filling
        write_atomically(self.folder / name, shard_bytes(list(self._buffer), list(self._buffer.values())))
        self._shards.pop(name, None)
        self._index.add(name, rows=len(self._buffer), signals=self._buffered_signals)
        self._buffer, self._buffered_signals, self._filling = {}, 0, None
        self._names.append(name)
        self._names.sort()
        if self._places is not None and self._names[-1] == name:
            self._places.add(self._index.lines[name].blake2b)
        else:  # the gap that a lost shard left is filled: the numbers after it are others now
            self._places = None
