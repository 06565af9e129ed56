"""How well a model predicts held-out lessons, and how far it is from its teacher on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Protocol

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

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row, in order, [selected, vocab]: what predicts its masked tokens."""
        ...


@torch.inference_mode()
def likelihood(
    model: Scorer, teacher: Scorer | None, lessons: list[Lesson], max_length: int, advance: Callable[[], None]
) -> Likelihood:
    """Loss and KL of each lesson's answer tokens, streaming; nothing is kept but sums.

    Args:
        teacher: live beside the model. Its KL is left out where its tokens are not the model's.
        max_length: longer lessons, in tokens, are left out, as in training.
        advance: called once a lesson.

    Raises:
        DataError: every lesson is too long.
    """
    rendered = (model.renderer.lesson(item.messages, item.complete, item.tools) for item in lessons)
    rows = [row for row in rendered if row.selected and len(row.ids) <= max_length]
    if not rows:
        raise DataError(
            "every held-out lesson is too long",
            expected=f"at most {max_length} tokens",
            do="raise distil.max_length, or leave out the task with `score: likelihood`",
        )
    for _ in range(len(lessons) - len(rows)):
        advance()
    if teacher is not None and teacher.renderer.tokenizer_hash != model.renderer.tokenizer_hash:
        teacher = None
    found = Likelihood([], [], None if teacher is None else [])
    theirs: Iterator[Tensor | None] = repeat(None) if teacher is None else iter(teacher.logits(rows))
    for row, logits, wanted in zip(rows, model.logits(rows), theirs, strict=False):
        loss, kl = _sums(row, logits, wanted)
        found.tokens.append(row.selected)
        found.loss.append(loss)
        if found.kl is not None:
            found.kl.append(kl)
        advance()
    return found


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
