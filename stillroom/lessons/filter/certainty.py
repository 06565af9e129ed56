"""How sure the teacher was of each piece of what it wrote: from an API's log-probabilities, or from the lesson book."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from stillroom.contracts.records import Answer

Pieces = Sequence[tuple[str, float]]


def from_alternatives(answer: Answer) -> Pieces | None:
    """The answer's text in the API's tokens, each with its probability, or None where they are not told.

    An API lists the likeliest tokens at each place, not which one was taken: the longest that the text goes on with.
    """
    if not answer.alternatives:
        return None
    text = str(answer.messages[-1].get("content") or "")
    pieces, at = [], 0
    for options in answer.alternatives:
        if at == len(text):
            break
        fits = [(token, value) for token, value in options if token and text.startswith(token, at)]
        if not fits:
            if at == 0 and any(token.isspace() for token, _ in options):
                continue  # white space before the answer, which is not kept
            return None
        token, value = max(fits, key=lambda option: len(option[0]))
        pieces.append((token, math.exp(value)))
        at += len(token)
    return pieces if at == len(text) else None


def certainty(
    signals: Path, tokenizer: Callable[[], Path | str] | None = None
) -> Callable[[Answer], Pieces | None]:
    """How sure the teacher was, by what was kept: an answer's own log-probabilities, else its row of a lesson book.

    Args:
        signals: folder of the book; there need be none. A book of another temperature than 1 does not tell.
        tokenizer: names the tokenizer that the book was captured with.
    """
    if tokenizer is None or not (signals / "header.json").is_file():
        return from_alternatives
    # Torch and the tokenizers are large, and only a book needs them.
    from stillroom.models.rendering import Renderer
    from stillroom.signals.book import Book

    renderer = Renderer.load(tokenizer())
    book = Book.open(signals, tokenizer=renderer.tokenizer_hash)
    if book.header.temperature != 1.0:
        return from_alternatives

    def pieces(answer: Answer) -> Pieces | None:
        told = from_alternatives(answer)
        if told is not None:
            return told
        rendered = renderer.lesson(answer.messages, complete=answer.finish == "stop", tools=answer.tools)
        key = book.key(rendered.ids, rendered.mask)
        if not book.has(key):
            return None
        row = book.row(key)
        taken = row.token_ids[row.loss_mask].long()
        chances = row.targets.chances(taken)
        text = str(answer.messages[-1].get("content") or "")
        tokens = [renderer.tokenizer.decode([number]) for number in taken.tolist()]
        found = [(token, float(chance)) for token, chance in zip(tokens, chances, strict=True)]
        return found if "".join(tokens).startswith(text) else None

    return pieces
