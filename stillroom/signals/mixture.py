"""Several teachers of the same tokens, read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.losses import SparseTargets
from stillroom.signals.codec import Row
from stillroom.signals.codes import Signals
from stillroom.signals.header import SHARED, BookHeader
from stillroom.signals.reading import BookReader

Weights = Sequence[float] | Mapping[str, Sequence[float]] | Callable[[str], Sequence[float]]


@dataclass(frozen=True, eq=False)
class MixedRow:
    """A row as `stillroom.signals.Row`; its targets are weights without codes, since no disk holds them."""

    token_ids: Tensor
    loss_mask: Tensor
    targets: SparseTargets


def mix(books: Sequence[BookReader], weights: Weights) -> Mixture:
    """Read several books over the same rows as the book of one teacher, sum_i a_i p_i.

    With head+draws the mixture's targets are unbiased, since they are the same sum of unbiased targets. The
    entropy of a mixture cannot be had from its parts: `targets.entropy` is sum_i a_i H(p_i), so that the value
    of forward KL is sum_i a_i KL(p_i || q). That is at least KL(sum_i a_i p_i || q), more by what the teachers
    differ among themselves, a constant with no part in the gradient: it is zero for no student unless all
    teachers agree.

    With top-k, the entries that *all* teachers list are kept and the rest is the bucket, which is exactly the
    mixture seen that coarsely; the value is a true KL of that coarser distribution. Teachers that list little
    in common leave little but a bucket.

    Args:
        books: opened for reading; teachers and budgets may differ, nothing else of their headers.
        weights: one a book, not negative, scaled to sum to one; or, per domain, a mapping from a row's key to
            such weights, or a function of the key. A book whose weight is 0 need not hold the row.

    Raises:
        BookError: headers that differ, or books of hidden states.
        ValueError: no books, or weights that do not fit; for a mapping or function, when a row is asked for.
    """
    if not books:
        raise ValueError("mix needs at least one book")
    for other in books[1:]:
        books[0].header.require(**{name: getattr(other.header, name) for name in SHARED})
    if books[0].header.head is not None:
        raise BookError(
            "books of hidden states cannot be mixed",
            got=f"{len(books)} books of kind hidden",
            expected="kind head+draws or top-k: a mixture of distributions has no one hidden state",
            do="capture with teach.signal.kind: head+draws, or train from one book",
        )
    mixture = Mixture(books, weights)
    if not callable(weights) and not isinstance(weights, Mapping):
        mixture.weights("")
    return mixture


class Mixture:
    """Answers as a book that is read, by key. Built by `mix`; rows are mixed when they are asked for."""

    def __init__(self, books: Sequence[BookReader], weights: Weights) -> None:
        self.books, self._weights = tuple(books), weights

    @property
    def header(self) -> BookHeader:
        """The books' header, all teachers named."""
        header = self.books[0].header
        for book in self.books[1:]:
            header = header.joined(book.header)
        return header

    def weights(self, key: str) -> list[float]:
        """The weights of a row, summing to one.

        Raises:
            BookError: the mapping has no weights for this row.
            ValueError: not one weight a book, a negative one, or none above zero.
        """
        if callable(self._weights):
            given = self._weights(key)
        elif isinstance(self._weights, Mapping):
            if key not in self._weights:
                raise BookError("the mixture has no weights for this row", got=f"key {key}")
            given = self._weights[key]
        else:
            given = self._weights
        total = sum(given)
        if len(given) != len(self.books) or min(given) < 0 or not 0 < total < float("inf"):
            raise ValueError(f"weights must be {len(self.books)} numbers from 0, not all 0; got {given}")
        return [weight / total for weight in given]

    def key(self, token_ids: Sequence[int] | Tensor, loss_mask: Sequence[bool] | Tensor) -> str:
        """The key of such a row."""
        return self.books[0].key(token_ids, loss_mask)

    def has(self, key: str) -> bool:
        """Whether every book with a weight holds the row."""
        if isinstance(self._weights, Mapping) and key not in self._weights:
            return False
        pairs = zip(self.books, self.weights(key), strict=True)
        return all(book.has(key) for book, weight in pairs if weight > 0)

    def keys(self) -> Iterator[str]:
        """Keys of the rows that can be mixed, book by book, each once."""
        for place, book in enumerate(self.books):
            for key in book:
                if not any(earlier.has(key) for earlier in self.books[:place]) and self.has(key):
                    yield key

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def row(self, key: str) -> MixedRow:
        """One row. Errors as in `Book.row` and `weights`."""
        parts = [(weight, book) for weight, book in zip(self.weights(key), self.books, strict=True) if weight]
        rows = [book.row(key) for _, book in parts]
        return mixed_row(rows, [weight for weight, _ in parts], self.books[0].header.vocab)

    def read(self, keys: Sequence[str]) -> list[MixedRow]:
        """Rows in the order of the keys. Errors as in `row`."""
        return [self.row(key) for key in keys]


def mixed_row(rows: Sequence[Row], weights: Sequence[float], vocab: int) -> MixedRow:
    """The weighted sum of what several teachers said of one row; ids come once a position, in rising order."""
    signals = [cast(Signals, row.targets) for row in rows]
    place = torch.cat([part.positions * vocab + part.ids for part in signals])
    values = torch.cat([part.weights.double() * a for part, a in zip(signals, weights, strict=True)])
    place, entry, listed = place.unique(return_inverse=True, return_counts=True)
    values = values.new_zeros(len(place)).index_add_(0, entry, values)
    bucket = signals[0].bucket
    if bucket:
        common = listed == len(signals)
        place, values = place[common], values[common]
    tokens = signals[0].tokens
    owner = place // vocab
    offsets = torch.zeros(tokens + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(owner, minlength=tokens).cumsum(0)
    tail = torch.zeros(tokens, dtype=torch.float64)
    entropy = sum(a * part.entropy.double() for part, a in zip(signals, weights, strict=True))
    if bucket:
        tail = (1 - tail.index_add(0, owner, values)).clamp(min=0)
        entropy = torch.special.entr(tail).index_add(0, owner, torch.special.entr(values.clamp(min=0)))
    targets = SparseTargets(
        ids=place % vocab,
        weights=values.float(),
        offsets=offsets,
        tail_mass=tail.float(),
        entropy=torch.as_tensor(entropy).float(),
        bucket=bucket,
        temperature=signals[0].temperature,
        vocab=vocab,
    )
    return MixedRow(rows[0].token_ids, rows[0].loss_mask, targets)
