"""What models are measured on: questions with right answers, and held-out lessons."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, Literal

from stillroom.checks import CodeTests, chosen_letter, final_number, parse_object, right_calls
from stillroom.contracts.conversations import conversation_of, with_system
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Score
from stillroom.contracts.records import SOURCE, Lesson, Message, content_key, from_line

PASSAGE = 4000
"""Most characters of a text that is predicted as one item."""
_PARTS = ("messages", "reference", "tools", "document", "stem", "options")
"""Of a question: what an item is made of."""
MOST_LESSONS = 200
"""Held-out lessons that a likelihood task reads when it has no limit of its own."""


@dataclass(frozen=True)
class Item:
    """A question and its right answer."""

    messages: list[Message]
    reference: str
    """Empty where only quotes are looked at, or a judge looks."""
    tools: list[dict[str, Any]] | None = None
    """Declarations of the tools that may be called, in OpenAI's form."""
    document: str | None = None
    """What quotes must stand in; None: the messages."""
    options: list[str] | None = None
    """What is ranked instead of written: letters, or the options' own words. The right answer is the letter of one."""

    @property
    def right(self) -> int:
        """Which of the options is right."""
        return LETTERS.index(self.reference)


@dataclass(frozen=True)
class Draws:
    """Several answers to each question."""

    samples: int
    temperature: float


@dataclass(frozen=True)
class EvaluationTask:
    """One measurement: `items` to answer (with `likeliest`, to choose an option of) or, with `likelihood` and `perplexity`,
    `lessons` to predict."""

    name: str
    score: Score
    items: list[Item] | None = None
    lessons: list[Lesson] | None = None
    draws: Draws | None = None
    """None: one answer, greedily."""

    @property
    def samples(self) -> int:
        """Answers to each question."""
        return self.draws.samples if self.draws else 1

    @property
    def size(self) -> int:
        """How many answers, options to be ranked or lessons."""
        return len(self.written) * self.samples or len(self.items or self.lessons or [])

    @property
    def written(self) -> list[Item]:
        """The items that a model writes answers to; none where it chooses or predicts."""
        return [] if self.score == "likeliest" else self.items or []

    @property
    def judged(self) -> bool:
        """Whether its answers are neither right nor wrong, but better or worse than the teacher's."""
        return self.score == "judge"

    @property
    def texts(self) -> list[Lesson]:
        """Those of its lessons that are texts."""
        return self.lessons or [] if self.score == "perplexity" else []

    @property
    def ranked(self) -> list[Item]:
        """The items whose options a model ranks."""
        return self.items or [] if self.score == "likeliest" else []

    @property
    def key(self) -> str:
        """A digest of all that decides a model's verdicts on this task."""
        return content_key(asdict(self, dict_factory=_without_empty_ones))


def load_task(
    path: Path,
    score: Score,
    name: str,
    *,
    limit: int | None = None,
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    options: Literal["letter", "text"] = "letter",
    lines: Iterable[dict[str, Any]] | None = None,
) -> EvaluationTask:
    """A task's file: JSONL of chat messages with the right answer.

    A line has `messages`, or a question as `prompt`, `question` or the like; and the right answer as `reference`,
    `answer` or the like (text, or a JSON value), or as an assistant's turn at the end of its messages. Its `tools`, in
    OpenAI's form, are declared to the model.

    Args:
        score: how answers are judged, any but `likelihood` and `perplexity`; every right answer must be one that it can
            judge by.
        limit: use the first so many items.
        system: put before every conversation that has no system prompt of its own.
        tools: declared where a line has none of its own.
        options: with `likeliest`, what is ranked: the options' letters after the line's question, or their words after its
            `stem`, the question without them.
        lines: what the file holds, where somebody else reads it.

    Raises:
        DataError: the file is missing or empty, or a line is not usable; the message names the line.
    """
    items: list[Item] = []
    for number, line in enumerate(read_lines(path) if lines is None else lines, 1):
        if limit is not None and len(items) >= limit:
            break
        where = f"{path}, item {number}"
        line = line if score != "likeliest" else _ranking(line, where, options)
        items.append(_item(line, where, score, system, tools))
    if not items:
        raise DataError(
            f"{path} has no items",
            expected='lines such as {"messages": [...], "reference": "..."}',
            do="give a task a file with at least one item",
        )
    return EvaluationTask(name, score, items=items)


def item_line(known: Mapping[str, Any]) -> dict[str, Any]:
    """What an item is made of; where the right answer is not set apart it is the worked one."""
    line = {name: known.get(name) for name in _PARTS}
    if line["reference"] is None:
        line["reference"] = known.get("solution")
    return {name: value for name, value in line.items() if value is not None}


def question_item(
    line: dict[str, Any],
    where: str,
    score: Score,
    *,
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Item:
    """A question whose right answer need not be known: its reference is empty then. Arguments as of `load_task`.

    Raises:
        DataError: the line, which `where` names, is not usable, or its right answer is not one that the score can judge by.
    """
    messages, reference = conversation_of(line, where)
    if reference is None:
        return Item(
            with_system(messages, system), "", _tools(line.get("tools", tools), where), line.get("document")
        )
    return _item(line, where, score, system, tools)


def has_form(answer: str, score: Score) -> bool:
    """Whether an answer has the form that right ones have: JSON where fields are compared, a number, a letter. A score
    without a form of its own takes all text."""
    return score not in _REFERENCES or _REFERENCES[score].fits(answer)


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


def text_task(
    documents: Iterable[Iterable[str]], path: Path, name: str, limit: int | None = None
) -> EvaluationTask:
    """Texts to be predicted, every token of them: passages of whole lines, each an item of its own.

    Args:
        documents: each as its lines.
        path: where they come from.
        limit: use the first so many passages.

    Raises:
        DataError: there is no text.
    """
    texts = (passage for lines in documents for passage in _passages(lines))
    lessons = [
        Lesson(
            str(number),
            [{"role": SOURCE, "content": path.name}, {"role": "assistant", "content": text}],
            "tune",
        )
        for number, text in enumerate(islice(texts, limit))
    ]
    if not lessons:
        raise DataError(f"{path} has no text", expected="a text that is not blank", do="check the file")
    return EvaluationTask(name, "perplexity", lessons=lessons)


def _passages(lines: Iterable[str]) -> Iterator[str]:
    """A text in passages of whole lines that fill up PASSAGE characters; a line that is longer is cut."""
    held = ""
    for line in lines:
        for part in (line[at : at + PASSAGE] for at in range(0, len(line), PASSAGE)):
            if held and len(held) + len(part) > PASSAGE:
                yield from _unless_blank(held)
                held = ""
            held += part
    yield from _unless_blank(held)


def _unless_blank(text: str) -> Iterator[str]:
    if text.strip():
        yield text


def _ranking(line: dict[str, Any], where: str, kind: Literal["letter", "text"]) -> dict[str, Any]:
    """The line as it is asked and ranked: with its letters, or bare and with its options' words."""
    found, stem = line.get("options"), line.get("stem")
    if not isinstance(found, list) or not 2 <= len(found) <= len(LETTERS) or (kind == "text" and not stem):
        raise DataError(
            f"{where} is no multiple choice",
            got=", ".join(line),
            expected='{"question": "...", "choices": ["...", "..."], "answer": "B"}, or a published form of it',
            do="mend the line, or give the task another score than `likeliest`",
        )
    if kind == "letter":
        return {**line, "options": list(LETTERS[: len(found)])}
    return {**line, "messages": [{"role": "user", "content": stem}]}


def _item(
    line: dict[str, Any], where: str, score: Score, system: str | None, tools: list[dict[str, Any]] | None
) -> Item:
    messages, reference = conversation_of(line, where)
    declared = _tools(line.get("tools", tools), where)
    if reference is None and score not in ("quotes", "judge"):
        raise DataError(
            f"{where} has no reference",
            got=", ".join(line),
            expected='{"messages": [{"role": "user", "content": "..."}], "reference": "..."}',
        )
    if score in _REFERENCES and not _REFERENCES[score].fits(reference or ""):
        kind = _REFERENCES[score]
        raise DataError(
            f"{where}: the reference is {kind.missing}",
            got=(reference or "")[:80],
            expected=kind.expected,
            do=f"mend the line, or give the task another score than `{score}`",
        )
    if score == "tools" and not declared:
        raise DataError(
            f"{where} declares no tools",
            got=", ".join(line),
            expected='tools: [{"type": "function", "function": {"name": "...", "parameters": {...}}}]',
            do="mend the line, or set teach.parameters.tools",
        )
    options: list[str] | None = line["options"] if score == "likeliest" else None
    if options and reference not in list(LETTERS[: len(options)]):
        raise DataError(
            f"{where}: the right answer is none of the options",
            got=(reference or "")[:80],
            expected=f"a letter from A to {LETTERS[len(options) - 1]}",
            do="mend the line",
        )
    return Item(with_system(messages, system), reference or "", declared, line.get("document"), options)


@dataclass(frozen=True)
class _Reference:
    """What a score wants of right answers."""

    fits: Callable[[str], bool]
    missing: str
    """What one that does not fit is."""
    expected: str


def _is_program(reference: str) -> bool:
    try:
        ast.parse(CodeTests.read(reference).test)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def _are_calls(reference: str) -> bool:
    try:
        return right_calls(reference) is not None
    except DataError:
        return False


_REFERENCES: dict[Score, _Reference] = {
    "json": _Reference(
        lambda text: parse_object(text) is not None,
        "not a JSON object",
        'an object such as {"intent": "refund"}',
    ),
    "number": _Reference(
        lambda text: final_number(text) is not None,
        "without a number",
        "18, or a worked answer that ends in one",
    ),
    "choice": _Reference(lambda text: chosen_letter(text) is not None, "no letter", "a letter such as B"),
    "tools": _Reference(
        _are_calls,
        "no list of tool calls",
        '[{"tool": {"argument": value}}], or [] where none is to be called',
    ),
    "code": _Reference(_is_program, "no tests in Python", '{"test": "assert f(1) == 2", "entry_point": "f"}'),
}


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


def _without_empty_ones(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """What has no tools, document, options and draws keeps the key that it had before there were any."""
    later = ("tools", "document", "options", "draws")
    return {name: value for name, value in fields if name not in later or value}
