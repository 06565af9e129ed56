"""Reading questions from files, with any sensible column name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Message, Prompt, content_key

QUESTION_FIELDS = ("prompt", "question", "instruction", "text", "input", "message")
ANSWER_FIELDS = ("reference", "answer", "completion", "response", "output", "label")
ROLES = {"system", "user", "assistant", "tool"}


def read_prompts(path: Path, name: str, limit: int | None = None) -> Iterator[Prompt]:
    """The questions of a JSONL or text file, one at a time, in the file's order.

    A JSON line has chat `messages`, or a field of QUESTION_FIELDS (and of ANSWER_FIELDS where the right answer is
    known). An assistant turn at the end of `messages` is the right answer. Other files are read as text, one
    question a line.

    Args:
        path: the file.
        name: what the prompts' `source` says.
        limit: at most this many.

    Raises:
        DataError: the file is missing, empty or malformed; the message names the line.
    """
    found = (
        _from_json(path, name) if path.suffix in (".jsonl", ".json", ".ndjson") else _from_text(path, name)
    )
    count = 0
    for prompt in itertools.islice(found, limit):
        count += 1
        yield prompt
    if count == 0:
        raise DataError(f"{path} has no questions", expected="at least one line", do="check the file")


def _from_json(path: Path, name: str) -> Iterator[Prompt]:
    for number, line in enumerate(read_lines(path), 1):
        messages, reference = conversation_of(line, f"{path}, line {number}")
        yield Prompt(messages, name, reference=reference)


def _from_text(path: Path, name: str) -> Iterator[Prompt]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield Prompt([{"role": "user", "content": line.rstrip("\n")}], name)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="check the path; it is relative to the recipe") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", got=str(error), expected="UTF-8 text or JSONL") from None


def conversation_of(line: dict[str, Any], where: str) -> tuple[list[Message], str | None]:
    """The question's messages and the right answer, if there is one, of a JSON line.

    Raises:
        DataError: the line has neither.
    """
    reference = next((_text(line[field]) for field in ANSWER_FIELDS if line.get(field) is not None), None)
    if "messages" in line:
        messages = line["messages"]
        if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
            raise DataError(
                f"{where}: messages are not chat messages",
                got=str(messages)[:120],
                expected='[{"role": "user", "content": "..."}]',
            )
        if messages[-1]["role"] == "assistant":
            *messages, last = messages
            reference = reference or last["content"]
        if not messages or messages[-1]["role"] != "user":
            raise DataError(f"{where}: there is no question", expected="a user turn before the answer")
        return messages, reference
    for field in QUESTION_FIELDS:
        if isinstance(line.get(field), str) and line[field].strip():
            return [{"role": "user", "content": line[field]}], reference
    raise DataError(
        f"{where}: there is no question",
        got=f"fields {', '.join(line) or 'none'}",
        expected=f"messages, or one of {', '.join(QUESTION_FIELDS)}",
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") in ROLES and isinstance(item.get("content"), str)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def question_key(messages: Iterable[Message]) -> str:
    """A key under which the same question is recognised whatever its case and spacing."""
    text = " ".join(message["content"] for message in messages if message["role"] == "user")
    return content_key(" ".join(text.casefold().split()))
