"""A lesson book in lines for people."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from stillroom.signals.book import Book
from stillroom.signals.codec import Row
from stillroom.signals.codes import Signals
from stillroom.signals.error import noise
from stillroom.signals.index import shards_in
from stillroom.signals.reading import BookReader

_SAMPLE = 64
_LISTED = 6

Text = Callable[[int], str]


def book_lines(folder: Path) -> Iterator[str]:
    """What is known of a book: its header, its size and, on a sample of rows, what a signal holds."""
    book = Book.open(folder)
    header = book.header
    size = sum((folder / name).stat().st_size for name in shards_in(folder))
    yield str(folder)
    for name, value in (
        ("teacher", header.teacher),
        ("tokenizer", f"{header.tokenizer}, {header.vocab:,} tokens"),
        ("template", header.template),
        (
            "kind",
            f"{header.kind} at temperature {header.temperature:g}, budget {header.budget} bytes a token",
        ),
        ("rows", f"{len(book):,}"),
        ("signals", f"{book.signals:,}"),
        ("on disk", f"{size:,} bytes, {size / max(book.signals, 1):.1f} a signal"),
    ):
        yield f"  {name:<10} {value}"
    if len(book) and (sample := sample_of(book)).tokens:
        yield from (f"  {line}" for line in _sample_lines(sample, header.vocab))


def row_lines(book: BookReader, key: str, text: Text = str) -> Iterator[str]:
    """A row, decoded: each predicted token, the teacher's entropy before it and the likeliest alternatives.

    Args:
        book: the book.
        key: the row's key.
        text: what to show for a token id.

    Raises:
        BookError: the book holds no such row.
    """
    row = book.row(key)
    yield f"row {key}: {len(row.token_ids)} tokens, {row.targets.tokens} signals"
    context = list(itertools.takewhile(lambda place: not row.loss_mask[place], range(len(row.token_ids))))
    yield f"  given  {' '.join(text(int(row.token_ids[place])) for place in context)}"
    yield f"  {'place':>6} {'token':<16} {'entropy':>7}  what the teacher thought"
    places = row.loss_mask.nonzero().flatten().tolist()
    for number, place in enumerate(places):
        yield f"  {place:>6} {text(int(row.token_ids[place])):<16} {_thought(row, number, text)}"


def _thought(row: Row, number: int, text: Text) -> str:
    one = row.targets.select(slice(number, number + 1))
    head = int(one.heads)
    listed = [
        f"{text(int(token))} {float(weight):.4f}"
        for token, weight in zip(one.ids[:_LISTED], one.weights[:_LISTED], strict=True)
    ]
    more = f", {one.kept - _LISTED} more" if one.kept > _LISTED else ""
    rest = f"; all others {float(one.tail_mass):.4f}" if one.bucket else f"; head of {head}"
    return f"{float(one.entropy):7.3f}  {', '.join(listed)}{more}{rest}"


def sample_of(book: Book) -> Signals:
    """The signals of up to 64 rows, evenly spread."""
    step = -(-len(book) // _SAMPLE)
    return Signals.cat([book.row(key).targets for key in itertools.islice(book, 0, None, step)])


def _sample_lines(sample: Signals, vocab: int) -> Iterator[str]:
    yield (
        f"{'signals':<10} {sample.bytes_per_token(vocab):.1f} bytes each without the row's own tokens "
        f"(this and what follows: mean of {sample.tokens:,})"
    )
    yield f"{'entropy':<10} {float(sample.entropy.mean()):.3f} nats"
    heads = sample.heads.double()
    if sample.bucket:
        yield f"{'kept':<10} {float(heads.mean()):.1f} tokens, which leave {float(sample.tail_mass.mean()):.4f}"
        return
    draws = (sample.counts - sample.heads).double()
    yield f"{'kept':<10} head of {float(heads.mean()):.1f}, {float(draws.mean()):.1f} draws from the tail"
    found = noise(sample)
    worth = f", as exact as the mean of {1 / found**2:,.0f} drawn at each token" if found else ""
    yield f"{'noise':<10} at most {found:.3f} of a label's drawn from the teacher{worth}"
