"""From a model's replies to verdicts, one an item."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from string import ascii_uppercase

from stillroom.checks import (
    COMPARED,
    Case,
    Finding,
    Verifier,
    check_calls,
    check_code,
    check_quotes,
    compare,
    equal_text,
    says,
)
from stillroom.contracts.recipe import Score
from stillroom.contracts.records import Reply
from stillroom.evaluation.tasks import Item, has_form


@dataclass(frozen=True)
class Verdict:
    """What one reply is worth."""

    text: str
    correct: bool
    """The whole answer is right."""
    valid: bool | None = None
    """The answer is a JSON object; None where none was asked for."""
    fields: dict[str, bool] = field(default_factory=dict)
    """Each of the reference's keys, or each part of what was asked for: is it right?"""
    confidence: float | None = None
    """The model's own probability of its answer, given the reasoning before it; None where it does not tell."""
    finish: str = "stop"
    why: str | None = None
    """What a check says of a wrong answer; None where the score says no more than that."""
    tries: list[bool] | None = None
    """Which of several answers, each drawn alone, are right; the rest of the verdict is the first's. None: one answer."""


def judge(item: Item, reply: Reply, score: Score, *, trusted: bool = False) -> Verdict:
    """The verdict on one reply. A refused, failed or cut-off answer is judged as it stands: it helps nobody more.

    Args:
        item: the question.
        reply: what a model answered.
        score: how it is judged, any but `likelihood`.
        trusted: run an answer's code even where the system cannot confine it.

    Raises:
        DataError: the item's reference is not one that the score can judge by.
        Fault: code cannot be confined here, and it is not trusted.
    """
    # One line of reasoning can be worded in many ways, which says nothing about the answer.
    told = reply.logprobs and reply.logprobs[reply.reasoning_tokens :]
    confidence = answer_confidence(told) if told else None
    if score == "json":
        verdict = compare(reply.text, item.reference)
        return Verdict(
            reply.text, verdict.exact, verdict.valid, verdict.fields, confidence, finish=reply.finish
        )
    if score == "exact":
        right = equal_text(reply.text, item.reference)
        return Verdict(reply.text, right, confidence=confidence, finish=reply.finish)
    answer = {"role": "assistant", "content": reply.text}
    case = Case(answer, item.messages, item.reference or None, item.tools, document=item.document)
    finding, fields = _CHECKS[score](case, trusted)
    right = finding.passed is not None and all(fields.values())
    why = None if right else ": ".join(filter(None, [finding.reason, finding.detail])) or None
    return Verdict(reply.text, right, None, fields, confidence, reply.finish, why)


def agrees(item: Item, reply: Reply, answer: str, score: Score, *, trusted: bool = False) -> bool:
    """Whether a reply says what another model's answer says, for a question whose right answer nobody knows.

    That answer passes for the right one where it has the form of one; else the texts must be the same.

    Args:
        answer: the other model's, without its reasoning.

    Raises:
        Fault: as `judge`.
    """
    if has_form(answer, score):
        return judge(replace(item, reference=answer), reply, score, trusted=trusted).correct
    return equal_text(reply.text, answer)


def judge_ranking(item: Item, logprobs: list[float]) -> Verdict:
    """The verdict on the option that a model finds likeliest: lm-eval's `acc`; of equals the first.

    Where the options' words were ranked, the field `by length` says whether the option of the highest log-probability a
    character is right: lm-eval's `acc_norm`. The confidence is the chosen option's probability among the options.

    Args:
        item: with its options.
        logprobs: of each option, summed over its tokens, natural log.
    """
    options = item.options or []
    best = max(range(len(options)), key=logprobs.__getitem__)
    others = math.fsum(math.exp(value - logprobs[best]) for value in logprobs)
    fields = {}
    if options != list(ascii_uppercase[: len(options)]):
        by_length = [value / max(1, len(option)) for value, option in zip(logprobs, options, strict=True)]
        fields["by length"] = max(range(len(options)), key=by_length.__getitem__) == item.right
    return Verdict(options[best], best == item.right, None, fields, confidence=1 / others)


def _plainly(check: Verifier) -> _Check:
    return lambda case, trusted: (check(case), {})


def _quoting(case: Case, trusted: bool) -> tuple[Finding, dict[str, bool]]:
    """Quotes that stand in the document, and where it is known the right answer in the answer's words."""
    finding = check_quotes(case)
    fields = {"quotes": finding.passed is not None}
    if case.reference:
        fields["answer"] = says(case.text, case.reference)
    return finding, fields


_Check = Callable[[Case, bool], tuple[Finding, dict[str, bool]]]
_CHECKS: dict[Score, _Check] = {
    **{name: _plainly(COMPARED[name]) for name in ("number", "maths", "choice")},
    "tools": _plainly(check_calls),
    "code": lambda case, trusted: (check_code(case, trusted=trusted), {}),
    "quotes": _quoting,
}


def answer_confidence(logprobs: list[float]) -> float:
    """exp of the sum of an answer's log-probabilities (natural log): 0..1, rounding above 1 cut off."""
    return math.exp(min(0.0, math.fsum(logprobs)))
