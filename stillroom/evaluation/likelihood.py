"""How well a model predicts held-out lessons, and how far it is from its teacher on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Lesson
from stillroom.evaluation.results import Likelihood
from stillroom.losses import forward_kl
from stillroom.models.rendering import Rendered, Renderer

_TOKENS_AT_ONCE = 256
"""Bounds the float32 copies: 256 tokens of a 150 k vocabulary are 150 MB."""


class Scorer(Protocol):
    """A model that tells its logits."""

    renderer: Renderer
    context: int | None
    """Tokens that it can read at once; None: it does not say."""

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row, in order, [selected, vocab]: what predicts its masked tokens."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A model that tells no more than the log-probabilities of a row's own tokens, as a server does."""

    renderer: Renderer
    context: int | None

    def logprobs(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row, in order, [selected]: natural log-probabilities of its masked tokens."""
        ...


@torch.inference_mode()
def likelihood(
    model: Scorer | Reader,
    teacher: Scorer | None,
    lessons: list[Lesson],
    max_length: int,
    advance: Callable[[], None],
    *,
    texts: bool = False,
) -> Likelihood:
    """Loss and KL of each lesson's answer tokens, streaming; nothing is kept but sums.

    Args:
        teacher: live beside the model. Its KL is left out where its tokens are not the model's, and that of a `Reader`.
        max_length: longer lessons, in tokens, are left out, as in training.
        advance: called once a lesson.
        texts: the lessons are texts: their bytes are counted, and longer ones, or those that a model cannot read at once,
            are read in pieces.

    Raises:
        DataError: every lesson is too long.
    """
    rendered = (model.renderer.lesson(item.messages, item.complete, item.tools) for item in lessons)
    if isinstance(model, Reader) or (
        teacher is not None and teacher.renderer.tokenizer_hash != model.renderer.tokenizer_hash
    ):
        teacher = None
    if texts:
        pieces = [list(_pieces(row, _longest(max_length, model, teacher))) for row in rendered]
    else:
        pieces = [[row] for row in rendered if row.selected and len(row.ids) <= max_length]
    if not pieces:
        raise DataError(
            "every held-out lesson is too long",
            expected=f"at most {max_length} tokens",
            do="raise distil.max_length, or leave out the task with `score: likelihood`",
        )
    for _ in range(len(lessons) - len(pieces)):
        advance()
    found = Likelihood(
        [sum(row.selected for row in rows) for rows in pieces],
        [],
        None if teacher is None else [],
        [_bytes(model.renderer, item.messages[-1]["content"]) for item in lessons] if texts else None,
    )
    sums = _each(model, teacher, [row for rows in pieces for row in rows])
    for rows in pieces:
        loss, kl = map(math.fsum, zip(*islice(sums, len(rows)), strict=True))
        found.loss.append(loss)
        if found.kl is not None:
            found.kl.append(kl)
        advance()
    return found


def _longest(max_length: int, *models: Scorer | Reader | None) -> int:
    """Tokens that all of these can read at once."""
    contexts = (model.context for model in models if model is not None)
    return min([max_length, *(context for context in contexts if context is not None)])


def _pieces(row: Rendered, longest: int) -> Iterator[Rendered]:
    """A text of any length in rows of at most `longest` tokens; each but the first begins with the last token before it,
    so that every token is predicted once."""
    for start in range(0, max(1, len(row.ids) - 1), longest - 1):
        ids = row.ids[start : start + longest]
        yield Rendered(ids, [place > 0 for place in range(len(ids))])


def _bytes(renderer: Renderer, text: str) -> int:
    """Bytes of a text that are predicted: all, or without a beginning-of-sequence token those behind the first token."""
    starts = renderer.token_starts(text)
    whole = len(renderer.text(text).ids) > len(starts)
    return len(text[0 if whole else starts[1] if len(starts) > 1 else len(text) :].encode())


def _each(
    model: Scorer | Reader, teacher: Scorer | None, rows: list[Rendered]
) -> Iterator[tuple[float, float]]:
    """Loss and KL of each row."""
    if isinstance(model, Reader):
        yield from ((-float(logprobs.sum()), 0.0) for logprobs in model.logprobs(rows))
        return
    theirs: Iterator[Tensor | None] = repeat(None) if teacher is None else iter(teacher.logits(rows))
    for row, logits, wanted in zip(rows, model.logits(rows), theirs, strict=False):
        yield _sums(row, logits, wanted)


def _sums(row: Rendered, logits: Tensor, wanted: Tensor | None) -> tuple[float, float]:
    """One lesson's loss and KL in nats, summed over its predicted tokens; logits [selected, vocab]."""
    targets = torch.tensor([token for token, chosen in zip(row.ids, row.mask, strict=True) if chosen])
    loss = kl = 0.0
    for start in range(0, len(targets), _TOKENS_AT_ONCE):
        piece = slice(start, start + _TOKENS_AT_ONCE)
        ours = logits[piece].float()
        chosen = ours.log_softmax(-1).gather(-1, targets[piece, None].to(ours.device))
        loss -= chosen.double().sum().item()
        if wanted is not None:
            kl += forward_kl(ours, wanted[piece].to(ours.device)).double().sum().item()
    return loss, kl
