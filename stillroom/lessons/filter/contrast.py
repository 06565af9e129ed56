"""Which answers hold what the teacher alone knows: its log-probability minus that of a small reference model.

What both find likely the student learns anywhere; what the teacher finds likely and a small model does not is what is to be
learned from this teacher. The difference is taken for a whole text, so that the two may cut it into different tokens, and
divided by its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from stillroom.contracts.records import Answer
from stillroom.models.rendering import Rendered, Renderer


class Scorer(Protocol):
    """A local model that tells its logits over given texts."""

    renderer: Renderer

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row in order, float32 [selected, vocab]."""
        ...


def differences(reference: Scorer, answers: Sequence[Answer]) -> list[float | None]:
    """Of each answer, log p of the teacher minus log p of the reference model, in nats a character.

    None where the teacher told no log-probability, or told it of another text than the lesson's (reasoning left out).

    Args:
        reference: the small model.
        answers: as lessons; `logprob` is of the whole answer, its end of turn included.

    Raises:
        ModelError: the reference's chat template refuses a conversation.
    """
    known = [number for number, answer in enumerate(answers) if answer.logprob is not None]
    rows = [
        reference.renderer.lesson(answer.messages, complete=answer.finish == "stop", tools=answer.tools)
        for answer in (answers[number] for number in known)
    ]
    found: list[float | None] = [None] * len(answers)
    for number, row, logits in zip(known, rows, reference.logits(rows), strict=True):
        taken = torch.tensor([token for token, selected in zip(row.ids, row.mask, strict=True) if selected])
        if not len(taken):
            continue
        own = float(logits.float().log_softmax(-1).gather(1, taken.to(logits.device)[:, None]).double().sum())
        length = len(str(answers[number].messages[-1].get("content") or ""))
        found[number] = ((answers[number].logprob or 0.0) - own) / max(length, 1)
    return found
