"""From a model's replies to verdicts, one an item."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from stillroom.checks import compare, equal_text
from stillroom.contracts.records import Reply
from stillroom.evaluation.tasks import Item, Score


@dataclass(frozen=True)
class Verdict:
    """What one reply is worth."""

    text: str
    correct: bool
    """The whole answer is right."""
    valid: bool | None = None
    """The answer is a JSON object; None where none was asked for."""
    fields: dict[str, bool] = field(default_factory=dict)
    """Each of the reference's keys: is its value right?"""
    confidence: float | None = None
    """The model's own probability of its answer, given the reasoning before it; None where it does not tell."""
    finish: str = "stop"


def judge(item: Item, reply: Reply, score: Score) -> Verdict:
    """The verdict on one reply. A refused, failed or cut-off answer is judged as it stands: it helps nobody more.

    Raises:
        DataError: the score is `json` and the item's reference is not a JSON object.
    """
    # One line of reasoning can be worded in many ways, which says nothing about the answer.
    told = reply.logprobs and reply.logprobs[reply.reasoning_tokens :]
    confidence = answer_confidence(told) if told else None
    if score == "json":
        verdict = compare(reply.text, item.reference)
        return Verdict(
            reply.text, verdict.exact, verdict.valid, verdict.fields, confidence, finish=reply.finish
        )
    return Verdict(
        reply.text, equal_text(reply.text, item.reference), confidence=confidence, finish=reply.finish
    )


def answer_confidence(logprobs: list[float]) -> float:
    """exp of the sum of an answer's log-probabilities (natural log): 0..1, rounding above 1 cut off."""
    return math.exp(min(0.0, math.fsum(logprobs)))
