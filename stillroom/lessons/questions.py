"""The questions that a run's lessons answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Lesson, content_key, from_line


def answered_questions(file: Path) -> Iterator[tuple[str, Lesson]]:
    """The lessons that answer a question, the first of each question, by its key.

    Args:
        file: lessons.jsonl of the filter stage, read line by line.
    """
    seen = set[str]()
    for line in read_lines(file):
        lesson = from_line(Lesson, line)
        before = lesson.messages[:-1]
        if not before or before[-1]["role"] != "user":
            continue
        key = content_key(before, lesson.tools)
        if key not in seen:
            seen.add(key)
            yield key, lesson


def question_line(key: str, lesson: Lesson) -> dict[str, Any]:
    """The question alone, as `stillroom.models.writing` reads it."""
    return {"key": key, "messages": lesson.messages[:-1]} | ({"tools": lesson.tools} if lesson.tools else {})
