"""A checker of the user's own: a Python function that says whether an answer is right."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stillroom.checks.sandbox import Limits, run_python
from stillroom.contracts.errors import DataError, Fault

OwnChecker = Callable[[str, str | None, Sequence[dict[str, Any]]], str | None]
"""(answer text, right answer or None, the conversation before it) -> why it is wrong, or None."""

_CALL = """
import json as _json
_given = _json.loads({job!r})
result = {function}(*_given)
if not isinstance(result, (bool, str, type(None))):
    raise TypeError("{function} returned " + type(result).__name__ + ", not True, False or the reason")
"""


def load_checker(where: str, base: Path, *, trusted: bool, limits: Limits | None = None) -> OwnChecker:
    """The function `FILE.py:NAME`; it takes (answer, reference, messages) and returns True, False or the reason.

    The function sees the answer's text, the right answer (None where there is none) and the messages before the answer.
    True means right; False, or a text that says why, means wrong.

    Args:
        where: file and function, such as `checks.py:is_polite`.
        base: the folder that the file's path is relative to.
        trusted: call it in this process, quick, with all that it may import; else each call is a program in the sandbox,
            with the standard library and installed packages, without network.
        limits: what a call in the sandbox may use.

    Raises:
        DataError: there is no such file or function.
    """
    name, _, function = where.rpartition(":")
    path = (base / name).expanduser()
    if not name or not function.isidentifier():
        raise DataError(f"{where} names no checker", expected="FILE.py:FUNCTION", do="set filter.checker")
    try:
        source = path.read_text(encoding="utf-8")
        compile(source, str(path), "exec")
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist", do="check filter.checker; it is relative to the recipe"
        ) from None
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not Python", got=str(error)) from None
    if trusted:
        return _in_process(path, function)
    if f"def {function}" not in source and f"{function} =" not in source:
        raise DataError(f"{path} has no function {function}", do="check filter.checker")
    return _in_sandbox(path, source, function, limits)


def _in_process(path: Path, function: str) -> OwnChecker:
    check = runpy.run_path(str(path)).get(function)
    if not callable(check):
        raise DataError(f"{path} has no function {function}", do="check filter.checker")

    def call(answer: str, reference: str | None, messages: Sequence[dict[str, Any]]) -> str | None:
        try:
            said = check(answer, reference, list(messages))
            if not isinstance(said, bool | str | None):
                raise TypeError(f"{function} returned {type(said).__name__}, not True, False or the reason")
        except Exception as error:
            raise _broken(path, function, f"{type(error).__name__}: {error}") from error
        return _reason(said)

    return call


def _in_sandbox(path: Path, source: str, function: str, limits: Limits | None) -> OwnChecker:
    def call(answer: str, reference: str | None, messages: Sequence[dict[str, Any]]) -> str | None:
        job = json.dumps([answer, reference, list(messages)])
        outcome = run_python(f"{source}\n{_CALL.format(job=job, function=function)}", limits, result=True)
        if outcome.status in ("time", "output", "killed"):
            return f"the checker went over its limits ({outcome.status})"
        if outcome.status != "passed":
            raise _broken(path, function, outcome.output.strip().rpartition("\n")[2] or "it left early")
        return _reason(outcome.result)

    return call


def _broken(path: Path, function: str, got: str) -> Fault:
    return Fault(
        f"the checker {function} in {path} failed",
        got=got,
        expected="True, False or a text that says what is wrong",
        do="mend it; an answer that it cannot read should be False",
    )


def _reason(said: bool | str | None) -> str | None:
    if isinstance(said, str):
        return said or None
    return None if said else "not right"
