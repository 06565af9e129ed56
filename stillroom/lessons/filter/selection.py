"""Of several answers to one question: which become lessons, and which pairs of right and wrong teach a preference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stillroom.contracts.records import Lesson, Message


@dataclass(frozen=True)
class Preference:
    """A right and a wrong answer to one question, in the form that TRL's DPO trainer reads: a line of preferences.jsonl."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    reason: str
    """Why the rejected answer is wrong."""
    split: str = "train"
    source: str = ""
    tools: str | None = None
    """Declarations of the tools that may be called, as JSON text: in a column of objects, libraries that keep tables would
    give every declaration the fields of all others."""

    def line(self) -> dict[str, Any]:
        """The line's object."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Wrong:
    """An answer that ran to its end and failed its check."""

    messages: list[Message]
    reason: str


def whole(message: Message) -> str:
    """An answer with its reasoning: two ways to one result are two lessons."""
    return " ".join(str(message.get("content") or "").casefold().split()) + str(
        message.get("tool_calls") or ""
    )


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The commonest of several final answers (the earliest of equally common ones) and its share."""
    answer, count = Counter(answers).most_common(1)[0]
    return answer, count / len(answers)


def preferred(better: Lesson, worse: Sequence[Message]) -> dict[str, Any]:
    """A pair by a judge's word: a lesson and the messages of an answer that it finds worse."""
    return _pair(better, worse[-1], "the judge prefers the other answer")


def pairs(right: Sequence[Lesson], wrong: Sequence[Wrong]) -> list[dict[str, Any]]:
    """Each right answer with one wrong one to the same question, as many as both have; equal texts make no pair."""
    whole_ones = (lesson for lesson in right if lesson.complete)
    return [
        _pair(lesson, other.messages[-1], other.reason)
        for lesson, other in zip(whole_ones, wrong, strict=False)
        if whole(lesson.messages[-1]) != whole(other.messages[-1])
    ]


def _pair(lesson: Lesson, rejected: Message, reason: str) -> dict[str, Any]:
    *prompt, chosen = lesson.messages
    tools = json.dumps(lesson.tools, ensure_ascii=False) if lesson.tools else None
    return Preference(
        lesson.id, prompt, [chosen], [rejected], reason, lesson.split, lesson.source, tools
    ).line()
