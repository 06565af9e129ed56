"""Is an answer right, by the check that the recipe names?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stillroom import checks
from stillroom.checks import UNCHECKED, Case, Finding, Verifier
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_json
from stillroom.contracts.recipe import Filter

Maker = Callable[[Filter, Path], Verifier]
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

    return lambda case: checks.check_calls(case, shared)


def _declared(path: Path) -> checks.Tools:
    declared = read_json(path)
    if not isinstance(declared, list) or not all(isinstance(item, dict) for item in declared):
        raise DataError(f"{path} declares no tools", got=str(declared)[:80], expected="a list of functions")
    return checks.Tools(declared)


def _own(rule: Filter, base: Path) -> Verifier:
    ask = checks.load_checker(rule.checker or "", base, trusted=rule.trusted)

    def check(case: Case) -> Finding:
        said: Any = ask(case.text, case.reference, case.before)
        return Finding("own") if said is None else Finding(reason="fails the checker", detail=said[:200])

    return check


def _without_settings(check: Verifier) -> Maker:
    return lambda rule, base: check


def _located(base: Path, name: str) -> Path:
    return (base / Path(name).expanduser()).resolve()


_MAKERS: dict[str, Maker] = {
    **{name: _without_settings(check) for name, check in checks.COMPARED.items()},
    "json": _json,
    "pattern": _pattern,
    "tools": _tools,
    "quotes": _without_settings(checks.check_quotes),
    "code": lambda rule, base: partial(checks.check_code, trusted=rule.trusted),
    "own": _own,
}
