"""Rows read from a lesson book by content, as the trainer asks for them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from stillroom.models.rendering import Rendered
from stillroom.signals.book import Book
from stillroom.training.batches import TrainingRow


class BookRows:
    """A row source over a book: in memory it holds 16 bytes of key and a length a row.

    Args:
        book: the open book.
        keys: of the rows, each in the book.
        lengths: tokens of each row, int [rows].
        missing: how many lessons the book did not hold.
    """

    def __init__(self, book: Book, keys: Iterable[str], lengths: np.ndarray, missing: int = 0) -> None:
        self.book, self.lengths, self.missing = book, lengths, missing
        self._keys = b"".join(map(bytes.fromhex, keys))
        self._width = len(self._keys) // max(len(lengths), 1)

    @classmethod
    def open(
        cls, folder: Path, lessons: Iterable[Rendered], *, tokenizer_hash: str, temperature: float
    ) -> Self:
        """The rows of these lessons, read one by one; one that the book does not hold is left out and counted.

        Raises:
            BookError: there is no book, or it was captured with another tokenizer or at another temperature.
        """
        book = Book.open(folder, tokenizer=tokenizer_hash, temperature=temperature)
        keys, lengths, read = [], array("q"), 0
        for row in lessons:
            read += 1
            if book.has(key := book.key(row.ids, row.mask)):
                keys.append(key)
                lengths.append(len(row.ids))
        return cls(book, keys, np.array(lengths, dtype=np.int64), read - len(keys))

    def __getitem__(self, index: int) -> TrainingRow:
        row = self.book.row(self._keys[index * self._width : (index + 1) * self._width].hex())
        return TrainingRow(row.token_ids.numpy(), row.loss_mask.numpy(), row.targets)
