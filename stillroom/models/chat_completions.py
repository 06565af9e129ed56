"""The chat completions format: what is sent for a request, and what an answer's JSON says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillroom.checks.reasoning import reasoning_length
from stillroom.contracts.records import Finish, Message, Reply, Request, Sampling

_FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "refused"}


class Malformed(Exception):
    """A response that is not a chat completion."""


@dataclass(frozen=True)
class ChatRequest(Request):
    """A request with parameters of its own, such as `tools` or `response_format`."""

    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatReply(Reply):
    """What only an API tells: calls of tools in the API's own form, and prompt tokens billed as cached."""

    tool_calls: list[dict[str, Any]] | None = None
    cached_tokens: int = 0
    turned_down: bool = False
    """The API was there and did not take this very request: too long a prompt, a schema that it does not know."""


def payload(
    model: str,
    request: Request,
    sampling: Sampling,
    limit_key: str = "max_tokens",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON to send.

    Args:
        model: the model's name at the API.
        request: the question.
        sampling: how the answer is drawn.
        limit_key: what this API calls the longest answer.
        parameters: more keys of the body; they, and a ChatRequest's own, override ours, and null takes a key out
            (newer hosted models refuse `temperature`).
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": list(request.messages),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        limit_key: sampling.max_new_tokens,
        # 31 bits: servers keep it in anything from int32 upwards.
        "seed": request.seed(sampling) & 0x7FFFFFFF,
    }
    if sampling.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    own = request.parameters if isinstance(request, ChatRequest) else {}
    if parameters or own:
        body |= {**(parameters or {}), **own}
        body = {key: value for key, value in body.items() if value is not None}
    return body


def estimated_tokens(messages: Iterable[Message], parameters: Mapping[str, Any] | None = None) -> int:
    """About how many tokens a prompt is: four bytes each, and a few around every message.

    Args:
        messages: the conversation.
        parameters: of a request's body; tools and the answer's form are part of the prompt.
    """
    total = 3
    for message in messages:
        total += 4 + _quarter(str(message.get("content") or ""))
        if message.get("tool_calls"):
            total += _quarter(json.dumps(message["tool_calls"]))
    for name in ("tools", "response_format"):
        if parameters and parameters.get(name):
            total += _quarter(json.dumps(parameters[name]))
    return total


def prompt_tokens(request: Request, parameters: Mapping[str, Any] | None = None) -> int:
    """About how many tokens a request's prompt is; `parameters` are those of every request, its own come before them."""
    own = request.parameters if isinstance(request, ChatRequest) else {}
    return estimated_tokens(request.messages, {**(parameters or {}), **own} if parameters or own else None)


def _quarter(text: str) -> int:
    return (len(text.encode(errors="replace")) + 3) // 4


def read_reply(body: Any, seconds: float) -> ChatReply:
    """A completion's JSON as a reply.

    Raises:
        Malformed: it is something else.
    """
    try:
        if isinstance(body, dict) and body.get("error"):
            raise Malformed(error_text(body))
        choice = body["choices"][0]
        message = choice["message"]
        refusal = message.get("refusal")
        finish: Finish = "refused" if refusal else _FINISHES.get(choice.get("finish_reason") or "", "stop")
        tokens = (choice.get("logprobs") or {}).get("content") or []
        usage = body.get("usage") or {}
        return ChatReply(
            text=_content(message.get("content")),
            finish=finish,
            logprobs=[float(token["logprob"]) for token in tokens] or None,
            alternatives=[_alternatives(token) for token in tokens] or None,
            reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
            reasoning_tokens=reasoning_length(len(tokens), lambda n: "".join(t["token"] for t in tokens[:n])),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
            error=refusal or ("the provider's content filter" if finish == "refused" else None),
            tool_calls=message.get("tool_calls") or None,
            cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"not a chat completion ({type(error).__name__}: {error})") from error


def _content(content: Any) -> str:
    """The text; some servers cut it into typed parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is {json.dumps(content)[:80]}")
    return content or ""


def error_text(body: Any) -> str:
    """What an error response says, at length: `Endpoint.clean` shortens it once no key can be cut in two any more."""
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error) if isinstance(error, dict) else error
    return str(text)


def error_code(body: Any) -> str:
    """The code of an error response, such as `insufficient_quota`; empty where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("code") or "") if isinstance(error, dict) else ""


def _alternatives(token: dict[str, Any]) -> list[tuple[str, float]]:
    return [(other["token"], float(other["logprob"])) for other in token.get("top_logprobs") or []]
