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
    """A row source over a book: in memory it holds a key and a length a row."""

    def __init__(self, book: Book, keys: Sequence[str], lengths: np.ndarray) -> None:
        self.book, self.keys, self.lengths = book, keys, lengths

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
        row = self.book.row(self.keys[index])
        return TrainingRow(row.token_ids.numpy(), row.loss_mask.numpy(), row.targets)
