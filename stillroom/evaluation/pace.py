"""How fast a model is for one who waits: one question after the other, with nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from stillroom.contracts.records import Answerer, Reply, Request, Sampling
from stillroom.evaluation.energy import Energy
from stillroom.evaluation.tasks import Item
from stillroom.models.chat_completions import ChatRequest

_QUESTIONS = 8
_TOKENS = 64
_SECONDS = 30.0
"""No further question after this long: a large model on a CPU takes minutes for one."""


@dataclass(frozen=True)
class Pace:
    """Medians over questions that were asked alone."""

    first_token_seconds: float
    """From a question to the first token of its answer, a prompt of this task read in between."""
    prompt_tokens_per_second: float
    generated_tokens_per_second: float | None
    """Of the tokens after the first; None where no answer had as many as two."""
    questions: int
    joules_per_question: float | None = None
    """Of the processor packages, everything that the machine does meanwhile included; None where it does not tell."""


def measure_pace(model: Answerer, items: Sequence[Item]) -> Pace | None:
    """Ask some of the items again, each alone; None where the engine does not tell when it began to answer.

    Args:
        model: has answered before, so that nothing is still to be loaded.
        items: of one task; those asked are spread over them evenly.
    """
    step = max(1, len(items) // _QUESTIONS)
    chosen = list(items[::step][:_QUESTIONS])
    if not chosen or _alone(model, chosen[0], 2) is None:  # which also warms up a batch of one
        return None
    replies, until, energy = [], time.monotonic() + _SECONDS, Energy.now()
    for item in chosen:
        reply = _alone(model, item, _TOKENS)
        replies += [reply] if reply else []
        if time.monotonic() > until:
            break
    joules = energy.until(Energy.now()) if energy else None
    waits = [(reply, reply.first_token_seconds) for reply in replies if reply.first_token_seconds]
    if not waits:
        return None
    writing = [
        (reply.completion_tokens - 1) / (reply.seconds - wait)
        for reply, wait in waits
        if reply.completion_tokens > 1 and reply.seconds > wait
    ]
    return Pace(
        median(wait for _, wait in waits),
        median(reply.prompt_tokens / wait for reply, wait in waits),
        median(writing) if writing else None,
        len(waits),
        joules / len(replies) if joules is not None else None,
    )


def _alone(model: Answerer, item: Item, tokens: int) -> Reply | None:
    """The reply to one question; None where it has no first token's time."""
    tools = {"tools": item.tools} if item.tools else {}
    request: Request = ChatRequest("pace", item.messages, parameters=tools)
    ((_, reply),) = model.answer([request], Sampling(temperature=0.0, max_new_tokens=tokens))
    return reply if reply.first_token_seconds is not None else None
