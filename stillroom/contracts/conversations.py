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
_EXAMPLE = '[{"role": "user", "content": "..."}]'


def conversation_of(line: dict[str, Any], where: str) -> tuple[list[Message], str | None]:
    """The question's messages and the right answer, if there is one, of a JSON line.

    The question is the line's chat `messages`, or its first field of QUESTION_FIELDS as a user's turn. The right answer
    is the first field of ANSWER_FIELDS (text, or any JSON value as JSON text), else an assistant's turn at the end: its
    text, and the calls that it makes as `calls_text`.

    Args:
        line: one object of a JSONL file.
        where: file and line, for the error.

    Raises:
        DataError: there is no question, or a message is none.
    """
    reference = next((_text(line[field]) for field in ANSWER_FIELDS if line.get(field) is not None), None)
    if "messages" in line:
        messages = chat_messages(line["messages"], where)
        if messages[-1]["role"] == "assistant":
            *messages, last = messages
            calls = calls_text(last.get("tool_calls") or [])
            reference = reference or "\n".join(filter(None, [last["content"], calls])) or None
        if not messages or messages[-1]["role"] not in ("user", "tool"):
            raise DataError(
                f"{where}: there is no question",
                got=f"turns of {', '.join(message['role'] for message in messages) or 'the assistant alone'}",
                expected="a user's turn, or what a tool said, before the answer",
            )
        return messages, reference
    for field in QUESTION_FIELDS:
        if isinstance(line.get(field), str) and line[field].strip():
            return [{"role": "user", "content": line[field]}], reference
    raise DataError(
        f"{where}: there is no question",
        got=f"fields {', '.join(line) or 'none'}",
        expected=f"messages, or one of {', '.join(QUESTION_FIELDS)}",
    )


def chat_messages(value: Any, where: str) -> list[Message]:
    """Chat messages in OpenAI's form, each with its content as text.

    Parts of text are joined; null, which stands beside tool calls, becomes the empty text, and a developer's turn the
    system's.

    Raises:
        DataError: it is no list of them, or one is not text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages are not chat messages", got=str(value)[:120], expected=_EXAMPLE)
    return [_message(item, where) for item in value]


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation, opened by a system prompt where it has none of its own."""
    if system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def calls_text(calls: Sequence[dict[str, Any]]) -> str:
    """Calls of tools in OpenAI's form as text, in the tags in which most open models write theirs."""
    functions = [call.get("function") or {} for call in calls]
    return "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(function.get("name"))}, "arguments": {_arguments(function)}}}\n</tool_call>'
        for function in functions
    )


def _arguments(function: dict[str, Any]) -> str:
    given = function.get("arguments") or "{}"
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _message(item: Any, where: str) -> Message:
    role = item.get("role") if isinstance(item, dict) else None
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise DataError(
            f"{where}: messages are not chat messages",
            got=str(item)[:120],
            expected=f"{_EXAMPLE}, with the roles {', '.join(sorted(ROLES))}",
        )
    content, calls = item.get("content"), item.get("tool_calls")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError(
                f"{where}: a message is not text", got=str(content)[:120], expected="text parts only"
            )
        content = "\n".join(part["text"] for part in content)
    if calls and not (role == "assistant" and isinstance(calls, list) and all(map(_is_call, calls))):
        raise DataError(
            f"{where}: a message has tool calls that are none",
            got=f"{role}: {calls}"[:120],
            expected='an assistant\'s [{"type": "function", "function": {"name": "...", "arguments": "{...}"}}]',
        )
    if content is None and role in ("assistant", "tool"):
        content = ""  # beside calls OpenAI's form has null; a refusal and a tool may say nothing
    if not isinstance(content, str):
        raise DataError(
            f"{where}: messages are not chat messages",
            got=f"{str(item)[:120]}, whose content is no text",
            expected=_EXAMPLE,
        )
    return {**item, "role": role, "content": content}


def _is_call(item: Any) -> bool:
    function = item.get("function") if isinstance(item, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
