"""Chat conversations in JSON lines, with any sensible column name: what prompts and evaluation items are read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Message

QUESTION_FIELDS = ("prompt", "question", "instruction", "text", "input", "message")
ANSWER_FIELDS = ("reference", "answer", "completion", "response", "output", "label")
ROLES = {"system", "user", "assistant", "tool"}


def conversation_of(line: dict[str, Any], where: str) -> tuple[list[Message], str | None]:
    """The question's messages and the right answer, if there is one, of a JSON line.

    The question is the line's chat `messages`, or its first field of QUESTION_FIELDS as a user's turn. The right answer
    is the first field of ANSWER_FIELDS (text, or any JSON value as JSON text), else an assistant's turn at the end.

    Args:
        line: one object of a JSONL file.
        where: file and line, for the error.

    Raises:
        DataError: there is no question.
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


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation, opened by a system prompt where it has none of its own."""
    if system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") in ROLES and isinstance(item.get("content"), str)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
