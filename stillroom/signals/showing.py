"""A lesson book in lines for people."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch

from stillroom.signals.book import Book
from stillroom.signals.codes import Signals
from stillroom.signals.error import noise
from stillroom.signals.header import BookHeader
from stillroom.signals.hidden import HiddenSignals
from stillroom.signals.index import shards_in
from stillroom.signals.kinds import AnySignals
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
        ("kind", _kind(header)),
        ("rows", f"{len(book):,}"),
        ("signals", f"{book.signals:,}"),
        ("on disk", f"{size:,} bytes, {size / max(book.signals, 1):.1f} a signal"),
    ):
        yield f"  {name:<10} {value}"
    if header.head is not None:
        share = header.head.bytes / max(book.signals, 1)
        yield f"  {'head':<10} {header.head.bytes:,} bytes more, once; as yet {share:.1f} a signal"
    if len(book) and (sample := _sampled(book)).tokens:
        yield from (f"  {line}" for line in _sample_lines(sample, header.vocab))


def _kind(header: BookHeader) -> str:
    if header.head is None:
        return f"{header.kind} at temperature {header.temperature:g}, budget {header.budget} bytes a token"
    facts = header.head
    made = ["a bias"] * facts.bias + [f"scale {facts.scale:g}"] * (facts.scale != 1)
    made += [f"softcap {facts.softcap:g}"] if facts.softcap is not None else []
    after = f"; head with {', '.join(made)}" if made else ""
    return f"hidden states, {facts.width} numbers in {facts.states}, exact at any temperature{after}"


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
    thoughts = (
        _exact(row.targets, text) if isinstance(row.targets, HiddenSignals) else _kept(row.targets, text)
    )
    for place, thought in zip(places, thoughts, strict=True):
        yield f"  {place:>6} {text(int(row.token_ids[place])):<16} {thought}"


def _exact(targets: HiddenSignals, text: Text) -> Iterator[str]:
    for p in targets.logits().softmax(-1):
        best = p.topk(min(_LISTED, len(p)))
        listed = _listed(best.indices, best.values, text)
        rest = 1 - float(best.values.sum())
        yield f"{float(torch.special.entr(p).sum()):7.3f}  {listed}; all others {rest:.4f}"


def _kept(targets: Signals, text: Text) -> Iterator[str]:
    for number in range(targets.tokens):
        one = targets.select(slice(number, number + 1))
        listed = _listed(one.ids[:_LISTED], one.weights[:_LISTED], text)
        more = f", {one.kept - _LISTED} more" if one.kept > _LISTED else ""
        rest = f"; all others {float(one.tail_mass):.4f}" if one.bucket else f"; head of {int(one.heads)}"
        yield f"{float(one.entropy):7.3f}  {listed}{more}{rest}"


def _listed(ids: torch.Tensor, weights: torch.Tensor, text: Text) -> str:
    pairs = zip(ids.tolist(), weights.tolist(), strict=True)
    return ", ".join(f"{text(token)} {weight:.4f}" for token, weight in pairs)


def sample_of(book: Book) -> Signals:
    """The signals of up to 64 rows, evenly spread, of a book of sampled or top-k signals."""
    return Signals.cat([cast(Signals, targets) for targets in _spread(book)])


def _sampled(book: Book) -> AnySignals:
    """A sample to be described: of hidden states one of a row, since each has the logits of a whole vocabulary."""
    if book.header.head is None:
        return sample_of(book)
    return HiddenSignals.cat([cast(HiddenSignals, targets).select(slice(0, 1)) for targets in _spread(book)])


def _spread(book: Book) -> Iterator[AnySignals]:
    step = -(-len(book) // _SAMPLE)
    return (book.row(key).targets for key in itertools.islice(book, 0, None, step))


def _sample_lines(sample: AnySignals, vocab: int) -> Iterator[str]:
    if isinstance(sample, HiddenSignals):
        entropy = torch.special.entr(sample.logits().softmax(-1)).sum(-1).mean()
        yield f"{'entropy':<10} {float(entropy):.3f} nats (mean of {sample.tokens:,})"
        return
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
