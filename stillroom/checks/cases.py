"""An answer with all that it can be held against, and the checks by name: one home for lessons and for evaluations.

What says that a lesson is right also says that an evaluation's answer is, so that a student is measured by what it was
taught by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.checks.choice import same_choice
from stillroom.checks.code import CodeTests, failure
from stillroom.checks.exact import equal_text
from stillroom.checks.expressions import same_mathematics
from stillroom.checks.json_fields import compare, parse_object
from stillroom.checks.numbers import same_number
from stillroom.checks.quotes import missing_quotes, quotes
from stillroom.checks.tools import Tools, same_calls, tool_calls, wanted_calls
from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Message


@dataclass(frozen=True)
class Case:
    """An answer to check: the assistant's turn, what stands before it, and the right answer where there is one."""

    answer: Message
    before: Sequence[Message]
    reference: str | None
    tools: Sequence[Mapping[str, Any]] | None = None
    """Declarations of the question's own tools."""
    check: str | None = None
    """How the question's source says that answers are checked."""
    document: str | None = None
    """What quotes must stand in; else they must stand in the messages before the answer."""

    @property
    def text(self) -> str:
        """The answer's text."""
        return str(self.answer.get("content") or "")


@dataclass(frozen=True)
class Finding:
    """What a check says. Neither passed nor wrong: there was nothing to hold the answer against."""

    passed: str | None = None
    """The check that it passed."""
    reason: str | None = None
    """Why it is wrong, in words that are counted."""
    detail: str = ""


Verifier = Callable[[Case], Finding]
UNCHECKED = Finding()
WRONG = "differs from the right answer"


def _compared(name: str, agrees: Callable[[str, str], bool]) -> Verifier:
    def check(case: Case) -> Finding:
        if case.reference is None:
            return UNCHECKED
        if agrees(case.text, case.reference):
            return Finding(name)
        return Finding(reason=WRONG, detail=case.reference[-200:])

    return check


def _equal(text: str, reference: str) -> bool:
    """JSON answers agree field by field, others to the letter."""
    if parse_object(reference) is not None:
        return compare(text, reference).exact
    return equal_text(text, reference)


def check_calls(case: Case, shared: Tools | None = None) -> Finding:
    """Are an answer's calls of tools the right ones, or where these are not known, do they fit their declarations?

    Right calls are right whatever their declarations say: a handful of BFCL's break their own.

    Args:
        case: the answer.
        shared: the tools of a question that declares none of its own.

    Raises:
        DataError: a declaration is none, or the right answer is no list of calls.
    """
    tools = Tools(case.tools) if case.tools else shared
    if tools is None:
        return UNCHECKED
    calls = tool_calls(case.answer)
    if calls is None:
        return Finding(reason="a tool call that cannot be read", detail=case.text[-120:])
    wanted = None if case.reference is None else right_calls(case.reference)
    if wanted is not None and same_calls(calls, wanted):
        return Finding("tools")
    for call in calls:
        if problem := tools.problem(call):
            return Finding(reason="a tool call does not fit its declaration", detail=problem)
    if case.reference is None:
        return Finding("tools")
    if wanted is None and not calls:
        return UNCHECKED  # words are right, and whether these are nobody knows
    return Finding(reason=WRONG, detail=case.reference[:200])


def right_calls(reference: str) -> list[dict[str, Any]] | None:
    """The right calls; None where the right answer is in words.

    Raises:
        DataError: it looks like calls and is none.
    """
    wanted = wanted_calls(reference)
    if wanted is None and (reference.lstrip().startswith(("[", "{")) or "<tool_call>" in reference):
        raise DataError(
            "a right answer is no list of tool calls",
            got=reference[:80],
            expected='[{"tool": {"argument": value}}], or [] where no tool is to be called',
        )
    return wanted


def check_quotes(case: Case) -> Finding:
    """Does an answer quote, and does every quote stand in its document?"""
    document = case.document or "\n".join(str(message.get("content") or "") for message in case.before)
    if missing := missing_quotes(case.text, document):
        return Finding(reason="a quote is not in the source", detail=missing[0][:200])
    return Finding("quotes") if quotes(case.text) else Finding(reason="nothing is quoted", detail="")


def check_code(case: Case, *, trusted: bool = False) -> Finding:
    """Does an answer's code pass its tests?

    Args:
        case: the answer.
        trusted: run it even where the system cannot confine it.

    Raises:
        Fault: the system cannot confine code, and it is not trusted.
    """
    if case.reference is None:
        return UNCHECKED
    why = failure(case.text, CodeTests.read(case.reference), trusted=trusted)
    return Finding("code") if why is None else Finding(reason="code fails its tests", detail=why)


COMPARED: dict[str, Verifier] = {
    "reference": _compared("reference", _equal),
    "number": _compared("number", same_number),
    "maths": _compared("maths", same_mathematics),
    "choice": _compared("choice", same_choice),
}
"""The checks that hold an answer's text against the right one and need nothing else."""
