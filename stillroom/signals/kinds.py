"""The kinds of signal: what a row keeps behind its tokens, and how that is checked and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stillroom.contracts.errors import BookError
from stillroom.signals.bits import ColumnReader
from stillroom.signals.codes import Signals, signals_read
from stillroom.signals.head import BookHead, HeadFacts
from stillroom.signals.header import BookHeader
from stillroom.signals.hidden import HiddenSignals, hidden_read

AnySignals = Signals | HiddenSignals


class Kind(Protocol):
    """One kind of signal. What it writes are its signals' `columns`."""

    def check(self, targets: AnySignals) -> None:
        """Raise BookError unless such signals belong into the book."""
        ...

    def read(self, reader: ColumnReader, signals: int, bits: int) -> AnySignals:
        """The signals of a row, behind its tokens; ValueError where its bytes are none."""
        ...


def kind_of(folder: Path, header: BookHeader) -> Kind:
    """The kind that a book's header names."""
    return HiddenKind(folder, header.head) if header.head is not None else SparseKind(header)


class SparseKind:
    """head+draws and top-k: a few weighted tokens at each position."""

    def __init__(self, header: BookHeader) -> None:
        self._header, self._bucket = header, header.kind == "top-k"

    def check(self, targets: AnySignals) -> None:
        if not isinstance(targets, Signals):
            raise _another_kind(self._header.kind, "hidden")
        kind = "top-k" if targets.bucket else "head+draws"
        self._header.require(temperature=targets.temperature, kind=kind)
        if (largest := int(targets.ids.max()) if targets.kept else -1) >= self._header.vocab:
            raise BookError(
                "a row does not fit the lesson book",
                got=f"token id {largest}",
                expected=f"ids below {self._header.vocab}",
            )

    def read(self, reader: ColumnReader, signals: int, bits: int) -> Signals:
        heads = reader.take("u1", signals).astype(np.int64)
        draws = np.zeros(signals, np.int64) if self._bucket else reader.take("u1", signals).astype(np.int64)
        entropy = reader.take("<u2", signals).astype(np.int64)
        tailed = np.ones(signals, bool) if self._bucket else (heads > 0) & (draws > 0)
        tail = np.zeros(signals, np.int64)
        tail[tailed] = reader.take("<u2", int(np.count_nonzero(tailed)))
        codes = reader.take("u1", int(np.maximum(heads - 1, 0).sum()))
        return signals_read(
            ids=reader.packed(int(heads.sum() + draws.sum()), bits).astype(np.int64),
            heads=heads,
            draws=draws,
            codes=codes,
            tail_codes=tail,
            entropy_codes=entropy,
            bucket=self._bucket,
            temperature=self._header.temperature,
            vocab=self._header.vocab,
        )


class HiddenKind:
    """hidden: the teacher's last hidden states, read under the book's head, which is loaded when first needed."""

    def __init__(self, folder: Path, facts: HeadFacts) -> None:
        self._folder, self._facts = folder, facts
        self._head: BookHead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_head": None}  # a pickled memory map would be a copy of the file

    @property
    def head(self) -> BookHead:
        """The book's head; BookError where it is damaged."""
        if self._head is None:
            self._head = BookHead.load(self._folder, self._facts)
        return self._head

    def check(self, targets: AnySignals) -> None:
        if not isinstance(targets, HiddenSignals):
            raise _another_kind("hidden", "top-k" if targets.bucket else "head+draws")
        if targets.head.facts != self._facts:
            raise BookError(
                "these hidden states enter another head than the book's",
                got=targets.head.facts,
                expected=self._facts,
            )

    def read(self, reader: ColumnReader, signals: int, bits: int) -> HiddenSignals:
        return hidden_read(reader.take("<i2", signals * self._facts.width), self.head)


def _another_kind(book: str, given: str) -> BookError:
    return BookError(
        "this book's kind is another",
        got=f"kind {given}",
        expected=f"kind {book}",
        do="capture into a new folder",
    )
