"""Is an answer right, by the check that the recipe names?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom import checks
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_json
from stillroom.contracts.recipe import Filter
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
FORMAL = frozenset({"json", "pattern"})
"""Checks of the form alone: what passes them may still be wrong."""


def verifier(rule: Filter, base: Path) -> Verifier:
    """The check of a recipe, its files read.

    Args:
        rule: which check, and its settings.
        base: the folder that paths are relative to.

    Raises:
        DataError: a file of it is not usable.
    """
    if rule.verify == "none":
        return lambda case: UNCHECKED
    if rule.verify == "source":
        return _by_source(rule, base)
    return _MAKERS[rule.verify](rule, base)


def _by_source(rule: Filter, base: Path) -> Verifier:
    """Each question by the check that its source's form has; where it names none, by its right answer if there is one."""
    ways = {name: maker(rule, base) for name, maker in _MAKERS.items() if name not in ("pattern", "own")}
    ways |= {"text": ways["reference"]}

    def check(case: Case) -> Finding:
        # "json" of a source means its reference, field by field.
        name = "reference" if case.check in (None, "json") else str(case.check)
        return ways[name](case) if name in ways else UNCHECKED

    return check


def slow(rule: Filter) -> bool:
    """Whether each check is a process of its own, so that several at a time pay."""
    return rule.verify in ("code", "source") or (rule.verify == "own" and not rule.trusted)


def final_answer(rule: Filter, text: str) -> str:
    """What an answer comes to, so that samples which say the same in other words are equal."""
    if rule.verify in ("number", "maths") and (number := checks.final_number(text)) is not None:
        return str(number)
    if rule.verify == "choice" and (letter := checks.chosen_letter(text)) is not None:
        return letter
    if (value := checks.parse_object(text)) is not None:
        return json.dumps(value, sort_keys=True)
    return " ".join(checks.strip_reasoning(text).casefold().split())


def _compared(name: str, agrees: Callable[[str, str], bool]) -> Callable[[Filter, Path], Verifier]:
    def check(case: Case) -> Finding:
        if case.reference is None:
            return UNCHECKED
        if agrees(case.text, case.reference):
            return Finding(name)
        return Finding(reason=WRONG, detail=case.reference[-200:])

    return lambda rule, base: check


def _equal(text: str, reference: str) -> bool:
    """JSON answers agree field by field, others to the letter."""
    if checks.parse_object(reference) is not None:
        return checks.compare(text, reference).exact
    return checks.equal_text(text, reference)


def _json(rule: Filter, base: Path) -> Verifier:
    schema = None
    if rule.json_schema:
        path = _located(base, rule.json_schema)
        schema = checks.Schema(read_json(path), str(path))

    def check(case: Case) -> Finding:
        value = checks.parse_object(case.text)
        if value is None:
            return Finding(reason="not the JSON object asked for", detail=case.text[-120:])
        missing = [key for key in rule.required if key not in value]
        if missing:
            return Finding(reason="JSON keys are missing", detail=", ".join(missing))
        if schema is not None and (problem := schema.problem(value)):
            return Finding(reason="JSON does not fit its schema", detail=problem)
        return Finding("json")

    return check


def _pattern(rule: Filter, base: Path) -> Verifier:
    wanted = re.compile(rule.pattern or "", re.DOTALL)

    def check(case: Case) -> Finding:
        answer = checks.strip_reasoning(case.text)
        if wanted.fullmatch(answer):
            return Finding("pattern")
        return Finding(reason="not of the pattern asked for", detail=answer[-120:])

    return check


def _tools(rule: Filter, base: Path) -> Verifier:
    shared = _declared(_located(base, rule.tools)) if rule.tools else None

    def check(case: Case) -> Finding:
        tools = checks.Tools(case.tools) if case.tools else shared
        if tools is None:
            return UNCHECKED
        calls = checks.tool_calls(case.answer)
        if calls is None:
            return Finding(reason="a tool call that cannot be read", detail=case.text[-120:])
        for call in calls:
            if problem := tools.problem(call):
                return Finding(reason="a tool call does not fit its declaration", detail=problem)
        if case.reference is None:
            return Finding("tools")
        wanted = _wanted(case.reference)
        if wanted is None and not calls:
            return UNCHECKED  # words are right, and whether these are nobody knows
        if wanted is not None and checks.same_calls(calls, wanted):
            return Finding("tools")
        return Finding(reason=WRONG, detail=case.reference[:200])

    return check


def _declared(path: Path) -> checks.Tools:
    declared = read_json(path)
    if not isinstance(declared, list) or not all(isinstance(item, dict) for item in declared):
        raise DataError(f"{path} declares no tools", got=str(declared)[:80], expected="a list of functions")
    return checks.Tools(declared)


def _wanted(reference: str) -> list[dict[str, Any]] | None:
    """The right calls; None where the right answer is in words."""
    wanted = checks.wanted_calls(reference)
    if wanted is None and (reference.lstrip().startswith(("[", "{")) or "<tool_call>" in reference):
        raise DataError(
            "a right answer is no list of tool calls",
            got=reference[:80],
            expected='[{"tool": {"argument": value}}], or [] where no tool is to be called',
        )
    return wanted


def _quotes(rule: Filter, base: Path) -> Verifier:
    def check(case: Case) -> Finding:
        document = case.document or "\n".join(str(message.get("content") or "") for message in case.before)
        if missing := checks.missing_quotes(case.text, document):
            return Finding(reason="a quote is not in the source", detail=missing[0][:200])
        return (
            Finding("quotes") if checks.quotes(case.text) else Finding(reason="nothing is quoted", detail="")
        )

    return check


def _code(rule: Filter, base: Path) -> Verifier:
    def check(case: Case) -> Finding:
        if case.reference is None:
            return UNCHECKED
        why = checks.failure(case.text, checks.CodeTests.read(case.reference), trusted=rule.trusted)
        return Finding("code") if why is None else Finding(reason="code fails its tests", detail=why)

    return check


def _own(rule: Filter, base: Path) -> Verifier:
    ask = checks.load_checker(rule.checker or "", base, trusted=rule.trusted)

    def check(case: Case) -> Finding:
        said: Any = ask(case.text, case.reference, case.before)
        return Finding("own") if said is None else Finding(reason="fails the checker", detail=said[:200])

    return check


def _located(base: Path, name: str) -> Path:
    return (base / Path(name).expanduser()).resolve()


_MAKERS: dict[str, Callable[[Filter, Path], Verifier]] = {
    "reference": _compared("reference", _equal),
    "number": _compared("number", checks.same_number),
    "maths": _compared("maths", checks.same_mathematics),
    "choice": _compared("choice", checks.same_choice),
    "json": _json,
    "pattern": _pattern,
    "tools": _tools,
    "quotes": _quotes,
    "code": _code,
    "own": _own,
}
