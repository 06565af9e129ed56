"""Questions with every model's answer side by side, the telling ones first, differences marked.

A line of evaluate/samples.jsonl is one question with everyone's verdicts:
{"task", "messages", "reference", "answers": {MODEL: {"text", "correct", "confidence", ...}}}.
"""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.checks.json_fields import parse_object, same
from stillroom.checks.reasoning import CLOSE, OPEN, strip_reasoning
from stillroom.contracts.files import read_lines
from stillroom.report.rows import Results, model_name

_LONGEST = 1_500
"""Characters of a text that are shown."""
BUDGET = 900_000
"""Bytes of HTML that the samples may take, so that the page stays under two megabytes whatever they hold."""
_ALIKE = 0.3
"""In texts less alike than this every word would be marked, which shows nothing."""

_GROUPS = (
    ("lost", "Teacher right, student wrong", 24),
    ("gained", "Student right, teacher wrong", 12),
    ("both wrong", "Both wrong", 12),
    ("both right", "Both right", 12),
    ("wrong", "Wrong", 24),
    ("right", "Right", 12),
)


@dataclass(frozen=True)
class Part:
    """A piece of an answer: a field of its JSON object, or a stretch of its text."""

    name: str | None
    text: str
    differs: bool


@dataclass(frozen=True)
class Voice:
    """A model, how sure it was, and what it thought before it answered."""

    model: str
    name: str
    """What the page calls it."""
    confidence: float | None
    thought: str


@dataclass(frozen=True)
class Shown:
    """An answer as the page shows it, and the models that gave it."""

    voices: list[Voice]
    right: bool
    parts: list[Part]

    @property
    def thoughts(self) -> list[str]:
        """The different lines of thought that led to it."""
        return list(dict.fromkeys(voice.thought for voice in self.voices if voice.thought))


@dataclass(frozen=True)
class Item:
    """One test question; `agree` where all models are right or all are wrong."""

    task: str
    question: str
    reference: str
    answers: list[Shown]
    agree: bool


@dataclass
class Group:
    """Questions with the same outcome; `total` counts those that are not shown too."""

    title: str
    total: int = 0
    items: list[Item] = field(default_factory=list)


def gallery(path: Path, results: Results) -> list[Group]:
    """The groups of evaluate/samples.jsonl that hold questions; the file is streamed.

    Raises:
        DataError: the file is not JSONL.
    """
    if not path.is_file():
        return []
    student = results.shipped or "student"
    groups = {id: Group(title) for id, title, _ in _GROUPS}
    chosen: dict[str, list[dict[str, Any]]] = {id: [] for id, _, _ in _GROUPS}
    for line in read_lines(path):
        id = _outcome(line["answers"], student)
        groups[id].total += 1
        most = next(most for name, _, most in _GROUPS if name == id)
        _keep(chosen[id], line, most)
    allowance = BUDGET
    for id, group in groups.items():
        for line in chosen[id]:
            if allowance <= 0:
                break
            item = shown_item(line, {model: model_name(model) for model in results.models})
            allowance -= weight(item)
            group.items.append(item)
    return [group for group in groups.values() if group.total]


def _keep(kept: list[dict[str, Any]], line: dict[str, Any], most: int) -> None:
    """Keep the first lines, those before all on which the models disagree."""
    place = len(kept)
    if not _agree(line):
        place = next((index for index, other in enumerate(kept) if _agree(other)), len(kept))
    kept.insert(place, line)
    del kept[most:]


def _agree(line: dict[str, Any]) -> bool:
    return len({answer["correct"] for answer in line["answers"].values()}) == 1


def _outcome(answers: dict[str, Any], student: str) -> str:
    own = (answers.get(student) or answers.get("student") or {}).get("correct", False)
    if "teacher" not in answers:
        return "right" if own else "wrong"
    if own == answers["teacher"]["correct"]:
        return "both right" if own else "both wrong"
    return "gained" if own else "lost"


def shown_item(line: dict[str, Any], names: Mapping[str, str]) -> Item:
    """A line of samples.jsonl as the page shows it; `names` has what each model is called, in the order of the answers."""
    turns = [turn["content"] for turn in line["messages"] if turn["role"] == "user"]
    question = turns[-1] if turns else ""
    reference = line.get("reference") or ""
    order = {model: index for index, model in enumerate(names)}
    shown: list[Shown] = []
    for model in sorted(line["answers"], key=lambda model: order.get(model, len(order))):
        verdict = line["answers"][model]
        answer = strip_reasoning(verdict["text"])
        thought = verdict["text"].strip().removesuffix(answer).replace(OPEN, "").replace(CLOSE, "").strip()
        voice = Voice(model, names.get(model, model), verdict.get("confidence"), clip(thought))
        parts = compare(answer, reference)
        if verdict["correct"]:
            # The scorer forgives what does not matter, such as spaces: a right answer has nothing to mark.
            parts = [Part(part.name, part.text, False) for part in parts]
        same_answer = next((s for s in shown if s.parts == parts and s.right == verdict["correct"]), None)
        if same_answer:
            same_answer.voices.append(voice)
        else:
            shown.append(Shown([voice], verdict["correct"], parts))
    return Item(line["task"], clip(question), clip(reference), shown, _agree(line))


def compare(answer: str, reference: str) -> list[Part]:
    """The answer in parts, those that differ from the right answer marked.

    Two JSON objects are compared field by field, other texts word by word.
    """
    own, right = parse_object(answer), parse_object(reference)
    if own is not None and right is not None:
        return [
            Part(clip(key), clip(_value(own[key])), key not in right or not same(own[key], right[key]))
            if key in own
            else Part(clip(key), "missing", True)
            for key in [*right, *(key for key in own if key not in right)]
        ]
    return _words(clip(answer), clip(reference)) if answer else [Part(None, "no answer", True)]


def _words(answer: str, reference: str) -> list[Part]:
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (answer, reference))
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    if matcher.quick_ratio() < _ALIKE or matcher.ratio() < _ALIKE:
        return [Part(None, answer, False)]
    return [
        Part(None, "".join(ours[start:end]), kind != "equal")
        for kind, _, _, start, end in matcher.get_opcodes()
        if start < end
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def clip(text: str) -> str:
    """The text, or its beginning and how much is left out."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({len(text) - _LONGEST:,} more characters)"


def weight(item: Item) -> int:
    """About how many bytes the item takes in the page, tags included."""
    return sum(len(html.escape(text).encode()) + 60 for text in _texts(item))


def _texts(item: Item) -> Iterator[str]:
    yield from (item.question, item.reference)
    for answer in item.answers:
        yield from answer.thoughts
        yield from (voice.model for voice in answer.voices)
        for part in answer.parts:
            yield part.name or ""
            yield part.text
