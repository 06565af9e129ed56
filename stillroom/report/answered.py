"""Every answer of an evaluation, item by item, so that two runs can be held together on what both were asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stillroom.contracts.files import read_json, read_lines
from stillroom.contracts.records import Message, content_key


@dataclass(frozen=True)
class Answered:
    """A question, and what one model made of it."""

    messages: list[Message]
    reference: str
    verdict: dict[str, Any]
    """As in evaluate/models/NAME.json: `text`, `correct`, `confidence` and more."""

    @property
    def correct(self) -> bool:
        """Whether the whole answer is right."""
        return bool(self.verdict["correct"])

    @property
    def tries(self) -> list[bool]:
        """Which of several answers are right; none where it answered once."""
        return self.verdict.get("tries") or []


Answers: TypeAlias = dict[str, dict[str, Answered]]
"""By task, then by the question's key; a system prompt is part of a run, not of the question."""


def read_answers(folder: Path, model: str) -> Answers:
    """What a model answered, from items.jsonl and models/NAME.json of an evaluation's folder.

    Empty where the evaluation was done before there was an items.jsonl; a task whose verdicts are not as many as its
    items, since the model was measured on others, is left out.

    Raises:
        DataError: a file is not readable.
    """
    items, known = folder / "items.jsonl", folder / "models" / f"{model}.json"
    if not items.is_file() or not known.is_file():
        return {}
    asked: dict[str, list[tuple[list[Message], str]]] = {}
    for line in read_lines(items):
        asked.setdefault(line["task"], []).append((line["messages"], line["reference"]))
    verdicts = read_json(known)["verdicts"]
    return {
        task: {
            _key(messages, reference): Answered(messages, reference, verdict)
            for (messages, reference), verdict in zip(questions, verdicts[task], strict=True)
        }
        for task, questions in asked.items()
        if len(verdicts.get(task, ())) == len(questions)
    }


def _key(messages: list[Message], reference: str) -> str:
    return content_key([turn for turn in messages if turn["role"] != "system"], reference)
