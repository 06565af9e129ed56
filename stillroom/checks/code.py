"""Code that passes its tests: the program in an answer, run with the tests in the sandbox."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from stillroom.checks.reasoning import strip_reasoning
from stillroom.checks.sandbox import Limits, run_python

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M | re.I)


@dataclass(frozen=True)
class CodeTests:
    """What code is run against."""

    test: str
    """Python that raises where the code is wrong; where it defines `check(candidate)` only, `entry_point` is checked."""
    entry_point: str | None = None
    """The function under test."""
    prompt: str = ""
    """What stands before an answer that is only the body: imports and the function's head."""

    @staticmethod
    def read(reference: str) -> CodeTests:
        """From a reference: a JSON object with `test` (and `entry_point`, `prompt`), or the tests' source itself."""
        try:
            value = json.loads(reference)
        except ValueError:
            return CodeTests(reference)
        if isinstance(value, list):  # MBPP gives a list of assert lines
            return CodeTests("\n".join(map(str, value)))
        if not isinstance(value, dict) or not isinstance(value.get("test"), str):
            return CodeTests(reference)
        return CodeTests(value["test"], value.get("entry_point"), value.get("prompt") or "")


def code_of(answer_text: str) -> str:
    """The Python in an answer: its fenced blocks joined, or the whole answer where there is no fence."""
    answer = strip_reasoning(answer_text) if "</think>" in answer_text else answer_text
    blocks = _FENCE.findall(answer)
    return "\n\n".join(blocks) if blocks else answer


def failure(
    answer_text: str, tests: CodeTests, limits: Limits | None = None, *, trusted: bool = False
) -> str | None:
    """Why an answer's code does not pass its tests, in one line; None where it passes.

    Args:
        answer_text: the whole answer: a program, a function, or the body that continues `tests.prompt`.
        tests: what it must pass.
        limits: what it may use.
        trusted: run it even where the system cannot confine it.

    Raises:
        Fault: the system cannot confine code, and it is not trusted.
    """
    program = assemble(code_of(answer_text), tests)
    if program is None:
        return "not Python"
    outcome = run_python(program, limits, trusted=trusted)
    if outcome.status == "passed":
        return None
    said = outcome.output.strip().rpartition("\n")[2][:200]
    words = {
        "failed": said or "it left before its tests were done",
        "time": "it took too long",
        "output": "it printed without end",
        "killed": "it was killed, most likely over its processor time",
    }
    return words[outcome.status]


def assemble(code: str, tests: CodeTests) -> str | None:
    """The program that is run: the code, completed by the prompt where it is only a body, then the tests."""
    whole = next((text for text in _readings(code, tests) if _parses(text, tests.entry_point)), None)
    if whole is None:
        return None
    call = f"\ncheck({tests.entry_point})\n" if tests.entry_point and "def check(" in tests.test else "\n"
    return f"{whole}\n\n{tests.test}\n{call}"


def _readings(code: str, tests: CodeTests) -> list[str]:
    if not tests.prompt:
        return [code]
    # A whole function still wants the prompt's imports and helpers before it; a body wants its head.
    return [
        f"{tests.prompt.rstrip()}\n    pass\n\n{code}",
        tests.prompt + code,
        f"{tests.prompt}{_indented(code)}",
    ]


def _parses(text: str, entry_point: str | None) -> bool:
    """It is Python, and its last definition of the function under test has a body of its own."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if entry_point is None:
        return True
    named = [
        node
        for node in tree.body
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == entry_point
        )
        or (
            isinstance(node, ast.Assign)
            and any(getattr(name, "id", "") == entry_point for name in node.targets)
        )
    ]
    if not named:
        return False
    last = named[-1]
    body = getattr(last, "body", None)
    return not (
        isinstance(body, list) and all(isinstance(node, ast.Pass) or _is_docstring(node) for node in body)
    )


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _indented(code: str) -> str:
    return "".join(f"    {line}" for line in code.splitlines(keepends=True))
