"""Rows read from a lesson book by content, as the trainer asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from stillroom.models.rendering import Rendered
from stillroom.signals.book import Book
from stillroom.training.batches import TrainingRow


class BookRows:
    """A row source over a book: in memory it holds 16 bytes of key and a length a row."""

    def __init__(self, book: Book, keys: Sequence[str], lengths: np.ndarray) -> None:
        self.book, self.lengths = book, lengths
        self._keys = b"".join(bytes.fromhex(key) for key in keys)
        self._width = len(self._keys) // max(len(keys), 1)

    @classmethod
    def open(
        cls, folder: Path, lessons: Sequence[Rendered], *, tokenizer_hash: str, temperature: float
    ) -> Self:
        """The rows of these lessons; a lesson that the book does not hold is left out.

        Raises:
            BookError: there is no book, or it was captured with another tokenizer or at another temperature.
        """
        book = Book.open(folder, tokenizer=tokenizer_hash, temperature=temperature)
        held = [(key, len(row.ids)) for row in lessons if book.has(key := book.key(row.ids, row.mask))]
        return cls(book, [key for key, _ in held], np.array([length for _, length in held], dtype=np.int64))

    def __getitem__(self, index: int) -> TrainingRow:
        row = self.book.row(self._keys[index * self._width : (index + 1) * self._width].hex())
        return TrainingRow(row.token_ids.numpy(), row.loss_mask.numpy(), row.targets)
