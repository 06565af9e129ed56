"""Rows read from a lesson book by content, as the trainer asks for them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from stillroom.models.rendering import Rendered
from stillroom.signals.book import Book
from stillroom.signals.mixture import Mixture, mix
from stillroom.training.batches import TrainingRow


class BookRows:
    """A row source over a book: in memory it holds 16 bytes of key and a length a row.

    Args:
        book: the open book.
        keys: of the rows, each in the book.
        lengths: tokens of each row, int [rows].
        missing: how many lessons the book did not hold.
    """

    def __init__(
        self, book: Book | Mixture, keys: Iterable[str], lengths: np.ndarray, missing: int = 0
    ) -> None:
        self.book, self.lengths, self.missing = book, lengths, missing
        self._keys = b"".join(map(bytes.fromhex, keys))
        self._width = len(self._keys) // max(len(lengths), 1)

    @classmethod
    def open(
        cls,
        folder: Path,
        lessons: Iterable[Rendered],
        *,
        tokenizer_hash: str,
        temperature: float,
        others: Sequence[Path] = (),
        weights: Callable[[Rendered], Sequence[float]] | None = None,
    ) -> Self:
        """The rows of these lessons, read one by one; one that the book does not hold is left out and counted.

        Args:
            folder: the book's.
            lessons: in the order of the rows.
            tokenizer_hash, temperature: what the books must have been captured with.
            others: the folders of more teachers' books, which are mixed with it.
            weights: of the teachers for a lesson, 0 for those that are not heard.

        Raises:
            BookError: there is no book, or it was captured with another tokenizer or at another temperature.
        """
        books = [
            Book.open(folder, tokenizer=tokenizer_hash, temperature=temperature)
            for folder in (folder, *others)
        ]
        heard = _Heard()
        book = mix(books, heard) if weights else books[0]
        keys, lengths, read = [], array("q"), 0
        for row in lessons:
            read += 1
            key = book.key(row.ids, row.mask)
            if weights:
                heard.remember(key, weights(row))
            if book.has(key):
                keys.append(key)
                lengths.append(len(row.ids))
        return cls(book, keys, np.array(lengths, dtype=np.int64), read - len(keys))

    def __getitem__(self, index: int) -> TrainingRow:
        row = self.book.row(self._keys[index * self._width : (index + 1) * self._width].hex())
        return TrainingRow(row.token_ids.numpy(), row.loss_mask.numpy(), row.targets)


class _Heard:
    """Which teachers count for which row; those of most rows are the same, so that few have to be kept apart."""

    def __init__(self) -> None:
        self._most: tuple[float, ...] | None = None
        self._others: dict[bytes, tuple[float, ...]] = {}

    def remember(self, key: str, weights: Sequence[float]) -> None:
        self._most = self._most or tuple(weights)
        if tuple(weights) != self._most:
            self._others[bytes.fromhex(key)] = tuple(weights)

    def __call__(self, key: str) -> Sequence[float]:
        return self._others.get(bytes.fromhex(key)) or self._most or ()
