"""Signals from what an API told while it answered: the likeliest tokens at each place, as texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Answer
from stillroom.models.rendering import Rendered, Renderer
from stillroom.signals.book import Book
from stillroom.signals.capture import from_top_logprobs
from stillroom.signals.codes import Signals


def append_alternatives(
    book: Book, window: Sequence[tuple[Answer, Rendered]], renderer: Renderer, meter: Meter
) -> int:
    """Write the signals of lessons whose answers tell them; returns how many have none."""
    without = 0
    for answer, row in window:
        aligned = aligned_signals(answer, row, renderer)
        if aligned is None:
            without += 1
        elif not book.has(book.key(row.ids, row.mask)):
            book.append(row.ids, row.mask, aligned)
        meter.advance()
    return without


def aligned_signals(answer: Answer, row: Rendered, renderer: Renderer) -> Signals | None:
    """The API's alternatives as signals over the lesson's own tokens, or None where the two do not match.

    An API lists tokens as text. Position by position the listed texts are looked up in the student's vocabulary; a
    text that is no token of it joins the bucket. The end of the turn is listed as an empty text by some (llama.cpp)
    and not at all by others; then it is taken as the one draw that it was.
    """
    if answer.alternatives is None:
        return None
    learned = [token for token, selected in zip(row.ids, row.mask, strict=True) if selected]
    listed = answer.alternatives
    if len(learned) - len(listed) not in (0, 1):
        return None
    texts = _ids_of_text(renderer)
    width = max((len(options) for options in listed), default=1)
    ids = torch.zeros(len(learned), width, dtype=torch.int64)
    logprobs = torch.full((len(learned), width), -torch.inf)
    for place, token in enumerate(learned):
        ending = {"": token} if token in renderer.eos_ids else {}
        options = [(texts.get(text, ending.get(text)), value) for text, value in _at(listed, place)]
        known: dict[int, float] = {}
        for number, value in options:
            if number is not None:  # several special tokens are listed under one text: the likeliest is meant
                known[number] = max(value, known.get(number, value))
        if options and token not in known:
            return None  # the API cut the text into other tokens than this tokenizer does
        pairs = list(known.items()) or [(token, 0.0)]
        ids[place] = _distinct_padding(pairs, width)
        logprobs[place, : len(pairs)] = torch.tensor([value for _, value in pairs])
    return from_top_logprobs(ids, logprobs)


def _at(listed: list[list[tuple[str, float]]], place: int) -> list[tuple[str, float]]:
    return listed[place] if place < len(listed) else []


@lru_cache(maxsize=1)
def _ids_of_text(renderer: Renderer) -> dict[str, int]:
    """Token text to id; texts that are only part of a character belong to no single token and are left out."""
    texts = renderer.tokenizer.batch_decode([[number] for number in range(renderer.vocab_size)])
    return {text: number for number, text in reversed(list(enumerate(texts))) if "\ufffd" not in text}


def _distinct_padding(pairs: list[tuple[int, float]], width: int) -> Tensor:
    """Ids of a row, filled up with ids that are not among them (their probability is zero)."""
    used = [token for token, _ in pairs]
    spare = (number for number in range(width * 2) if number not in used)
    return torch.tensor(used + [next(spare) for _ in range(width - len(used))])
