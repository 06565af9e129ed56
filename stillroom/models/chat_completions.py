"""The chat completions format: what is sent for a request, and what an answer's JSON says."""

from __future__ import annotations

from typing import Any

from stillroom.contracts.records import Finish, Reply, Request, Sampling

_FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "refused"}


class Malformed(Exception):
    """A response that is not a chat completion."""


def payload(model: str, request: Request, sampling: Sampling, limit_key: str) -> dict[str, Any]:
    """The JSON to send; `limit_key` is what this API calls the longest answer."""
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
    return body


def read_reply(body: Any, seconds: float) -> Reply:
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
        return Reply(
            text=message.get("content") or "",
            finish=finish,
            logprobs=[float(token["logprob"]) for token in tokens] or None,
            alternatives=[_alternatives(token) for token in tokens] or None,
            reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
            error=refusal or ("the provider's content filter" if finish == "refused" else None),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"not a chat completion ({type(error).__name__}: {error})") from error


def error_text(body: Any) -> str:
    """What an error response says, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300]


def error_code(body: Any) -> str:
    """The code of an error response, such as `insufficient_quota`; empty where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("code") or "") if isinstance(error, dict) else ""


def _alternatives(token: dict[str, Any]) -> list[tuple[str, float]]:
    return [(other["token"], float(other["logprob"])) for other in token.get("top_logprobs") or []]
