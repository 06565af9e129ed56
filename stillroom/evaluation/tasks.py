"""What models are measured on: questions with right answers, and held-out lessons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.checks import parse_object
from stillroom.contracts.conversations import conversation_of, with_system
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Lesson, Message, content_key, from_line

Score = Literal["json", "exact", "likelihood"]

MOST_LESSONS = 200
"""Held-out lessons that a likelihood task reads when it has no limit of its own."""


@dataclass(frozen=True)
class Item:
    """A question and its right answer."""

    messages: list[Message]
    reference: str
    tools: list[dict[str, Any]] | None = None
    """Declarations of the tools that may be called, in OpenAI's form."""


@dataclass(frozen=True)
class EvaluationTask:
    """One measurement: `items` to answer (`json`, `exact`) or `lessons` to predict (`likelihood`)."""

    name: str
    score: Score
    items: list[Item] | None = None
    lessons: list[Lesson] | None = None

    @property
    def size(self) -> int:
        """How many items or lessons."""
        return len(self.items or self.lessons or [])

    @property
    def key(self) -> str:
        """A digest of all that decides a model's verdicts on this task."""
        return content_key(asdict(self, dict_factory=_without_empty_tools))


def load_task(
    path: Path,
    score: Score,
    name: str,
    *,
    limit: int | None = None,
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    lines: Iterable[dict[str, Any]] | None = None,
) -> EvaluationTask:
    """A task's file: JSONL of chat messages with the right answer.

    A line has `messages`, or a question as `prompt`, `question` or the like; and the right answer as `reference`,
    `answer` or the like (text, or a JSON value), or as an assistant's turn at the end of its messages. Its `tools`, in
    OpenAI's form, are declared to the model.

    Args:
        score: `json` or `exact`; with `json` every reference must be a JSON object.
        limit: use the first so many items.
        system: put before every conversation that has no system prompt of its own.
        tools: declared where a line has none of its own.
        lines: what the file holds, where it is no JSONL and somebody else reads it.

    Raises:
        DataError: the file is missing or empty, or a line is not usable; the message names the line.
    """
    items: list[Item] = []
    for number, line in enumerate(read_lines(path) if lines is None else lines, 1):
        if limit is not None and len(items) >= limit:
            break
        items.append(_item(line, f"{path}, item {number}", score, system, tools))
    if not items:
        raise DataError(
            f"{path} has no items",
            expected='lines such as {"messages": [...], "reference": "..."}',
            do="give a task a file with at least one item",
        )
    return EvaluationTask(name, score, items=items)


def held_out_lessons(path: Path, name: str, limit: int | None = None) -> EvaluationTask:
    """The lessons of filter/lessons.jsonl that were held out of training (`split: tune`), the first `limit`.

    Raises:
        DataError: the file is missing or no lesson is held out.
    """
    lessons: list[Lesson] = []
    for line in read_lines(path):
        if len(lessons) >= (limit or MOST_LESSONS):
            break
        if line.get("split") == "tune":
            lessons.append(from_line(Lesson, line))
    if not lessons:
        raise DataError(
            f"{path} has no held-out lessons",
            expected='lessons with "split": "tune"',
            do="set splits.tune above 0, or leave out the task with `score: likelihood`",
        )
    return EvaluationTask(name, "likelihood", lessons=lessons)


def _item(
    line: dict[str, Any], where: str, score: Score, system: str | None, tools: list[dict[str, Any]] | None
) -> Item:
    messages, reference = conversation_of(line, where)
    if reference is None:
        raise DataError(
            f"{where} has no reference",
            got=", ".join(line),
            expected='{"messages": [{"role": "user", "content": "..."}], "reference": "..."}',
        )
    if score == "json" and parse_object(reference) is None:
        raise DataError(
            f"{where}: the reference is not a JSON object",
            got=reference[:80],
            expected='an object such as {"intent": "refund"}',
            do="mend the line, or score the task with `exact`",
        )
    return Item(with_system(messages, system), reference, _tools(line.get("tools", tools), where))


def _tools(given: Any, where: str) -> list[dict[str, Any]] | None:
    if not given:
        return None
    if not isinstance(given, list) or not all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in given
    ):
        raise DataError(
            f"{where}: tools are not declarations of tools",
            got=str(given)[:120],
            expected='[{"type": "function", "function": {"name": "...", "parameters": {...}}}]',
            do="mend the line, or leave its tools out",
        )
    return given


def _without_empty_tools(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """What declares no tools keeps the key that it had before there were any."""
    return {name: value for name, value in fields if name != "tools" or value}
