"""Logs of OpenAI-style requests and answers: the question as it was asked, and the answer that was given to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stillroom.contracts.conversations import chat_messages
from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Finish, Message, Reply
from stillroom.lessons.prompts.questions import Question
from stillroom.models.chat_completions import ChatReply

_REQUESTS = ("request", "body", "input", "kwargs")
_RESPONSES = ("response", "output", "completion", "result")
_DEPTH = 4
_FINISHES: dict[str, Finish] = {"length": "length", "max_tokens": "length", "content_filter": "refused"}


def is_logged(row: dict[str, Any]) -> bool:
    """Whether a row holds a chat request and its answer, or a request's body alone."""
    request = _request(row)
    return request is not None and (_response(row) is not None or request is not row)


def logged_question(row: dict[str, Any], where: str) -> Question:
    """The question of a logged request, with the answer that came.

    Read are a request under `request`, `body` or `input` (or the row itself) that holds `messages`, and a chat completion
    under `response`, `output` or `completion`, each as an object or as JSON text; `response.body` as in batch files. A
    request without an answer, or with an error, is a question like any other.

    Raises:
        DataError: there are no chat messages.
    """
    request = _request(row)
    if request is None:
        raise DataError(f"{where} is no logged request", got=", ".join(row), expected="request.messages")
    messages = chat_messages(request["messages"], where)
    if messages[-1]["role"] not in ("user", "tool"):
        raise DataError(
            f"{where}: there is no question",
            got=f"a request that ends with a turn of the {messages[-1]['role']}",
            expected="a user's turn, or what a tool said, at its end",
        )
    response = _response(row) or {}
    choice: dict[str, Any] = next(iter(response.get("choices") or []), {})
    answer = choice.get("message")
    model = response.get("model") or request.get("model")
    return Question(
        messages,
        **own_parameters(request),
        answer=_answer(answer)
        if isinstance(answer, dict) and choice.get("finish_reason") != "error"
        else None,
        answered_by=model if answer else None,
        finish=choice.get("finish_reason") if answer else None,
    )


def own_parameters(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row's fields goes into its question's request as it is: tools in OpenAI's form, and the answer's form."""
    tools = _parsed(row.get("tools"))
    if not (isinstance(tools, list) and tools and all(map(_is_tool, tools))):
        tools = None
    choice = row.get("tool_choice") if tools else None  # APIs refuse a choice without tools
    form = _object(row.get("response_format"))
    found = {
        "tools": tools,
        "tool_choice": choice if isinstance(choice, str | dict) else None,
        "response_format": form if form and "type" in form else None,
    }
    return {name: value for name, value in found.items() if value}


def _is_tool(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("function"), dict)


def logged_reply(line: dict[str, Any]) -> Reply | None:
    """The reply that a log already holds for a line of prompts/prompts.jsonl, so that nobody is asked again; or None."""
    answer = line.get("answer")
    if not isinstance(answer, dict):
        return None
    return ChatReply(
        text=answer.get("content") or "",
        finish=_FINISHES.get(line.get("finish") or "", "stop"),
        reasoning=answer.get("reasoning_content"),
        tool_calls=answer.get("tool_calls"),
    )


def _request(row: dict[str, Any]) -> dict[str, Any] | None:
    for value in (*(_object(row.get(name)) for name in _REQUESTS), row):
        if value is not None:
            value = _object(value.get("body")) or value
            if isinstance(value.get("messages"), list) and value["messages"]:
                return value
    return None


def _response(row: dict[str, Any]) -> dict[str, Any] | None:
    """The chat completion of a row."""
    found = _objects(row, _RESPONSES)
    for _ in range(_DEPTH):
        for value in found:
            if isinstance(value.get("choices"), list):
                return value
        found = [inner for value in found for inner in _objects(value, ("body", "response", "data"))]
    return row if isinstance(row.get("choices"), list) else None


def _objects(row: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [value for name in names if (value := _object(row.get(name))) is not None]


def _object(value: Any) -> dict[str, Any] | None:
    value = _parsed(value)
    return value if isinstance(value, dict) else None


def _parsed(value: Any) -> Any:
    """A value that may be JSON text; None where it looks like JSON and is none."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value


def _answer(message: dict[str, Any]) -> Message | None:
    """The assistant's turn: text, reasoning that the API kept apart, tool calls; None where it is empty."""
    kept = {name: message[name] for name in ("reasoning_content", "tool_calls") if message.get(name)}
    if not message.get("content") and not kept.get("tool_calls"):
        return None
    return {"role": "assistant", "content": message.get("content") or "", **kept}
