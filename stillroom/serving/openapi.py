"""The front in OpenAPI 3.1: its addresses, what they take, and every status that they answer with.

Requests are described as far as the front reads them; what else llama.cpp takes passes unseen (`additionalProperties`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom import __version__

_Schema = dict[str, Any]


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: _Schema, description: str) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(required: list[str], **properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": required}


_TEXT: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_ERROR = _object(
    ["error"],
    error=_object(
        ["message", "type", "param", "code"],
        message=_TEXT,
        type={"enum": ["invalid_request_error", "requests", "server_error"]},
        param={"type": ["string", "null"]},
        code={"type": ["string", "null"]},
    ),
)
_MODEL = _object(
    ["id", "object", "created", "owned_by"],
    id=_TEXT,
    object={"const": "model"},
    created=_COUNT,
    owned_by=_TEXT,
)
_MESSAGE = _object(
    ["role", "content"],
    role={"enum": ["system", "developer", "user", "assistant", "tool"]},
    content={
        "anyOf": [
            _TEXT,
            {"type": "array", "items": _object(["type", "text"], type={"const": "text"}, text=_TEXT)},
            {"type": "null"},
        ]
    },
)
_COMMON: dict[str, _Schema] = {
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "seed": {"type": ["integer", "null"]},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]},
    "stream": {"type": ["boolean", "null"]},
}
_FAULTS = {
    "400": "The body is no request, or longer than the model's context.",
    "401": "No API key, or a wrong one.",
    "404": "There is no such model.",
    "413": "The body is too long.",
    "429": "Too many requests are under way.",
    "500": "The server failed.",
    "502": "The model stopped while answering.",
    "503": "The model is not running; try again in a moment.",
}


def _faults(*statuses: str) -> _Schema:
    return {status: _json(_ref("Error"), _FAULTS[status]) for status in statuses}


def _completion(summary: str, request: str, reply: str) -> _Schema:
    answer = _json(_ref(reply), "The answer; with `stream`, events of its pieces.")
    answer["content"]["text/event-stream"] = {"schema": _object(["data"], data=_TEXT)}
    return {
        "post": {
            "summary": summary,
            "operationId": request[0].lower() + request[1:],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref(request)}},
            },
            "responses": {"200": answer, **_faults(*_FAULTS)},
            "security": [{"key": []}, {}],
        }
    }


def _get(summary: str, name: str, answer: _Schema, *faults: str, **more: Any) -> _Schema:
    return {
        "get": {
            "summary": summary,
            "operationId": name,
            "responses": {"200": answer, **_faults(*faults)},
            **more,
        }
    }


def document(models: Sequence[str], most_tokens: int | None = None) -> _Schema:
    """The OpenAPI document of a front that serves these models, with answers of at most so many tokens."""
    length: _Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": most_tokens or 2**31 - 1}
    keyed: _Schema = {"security": [{"key": []}, {}]}
    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT, "example": models[0]}
    model = {"enum": list(models)}
    plain = {"description": "Figures.", "content": {"text/plain": {"schema": _TEXT}}}
    listed = _object(
        ["object", "data"], object={"const": "list"}, data={"type": "array", "items": _ref("Model")}
    )
    reply = _object(["id", "object", "choices"], id=_TEXT, object=_TEXT, choices={"type": "array"})
    return {
        "openapi": "3.1.0",
        "info": {"title": "stillroom", "version": __version__},
        "paths": {
            "/v1/chat/completions": _completion("Answer a conversation", "ChatCompletion", "Completed"),
            "/v1/completions": _completion("Continue a text", "Completion", "Completed"),
            "/v1/models": _get("What is served", "models", _json(listed, "The models."), "401", **keyed),
            "/v1/models/{model}": _get(
                "One model",
                "model",
                _json(_ref("Model"), "The model."),
                "401",
                "404",
                parameters=[name],
                **keyed,
            ),
            "/health": _get(
                "Whether it answers",
                "health",
                _json(_object(["status"], status={"const": "ok"}), "It does."),
                "503",
            ),
            "/metrics": _get("Figures for Prometheus", "metrics", plain),
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": _ERROR,
                "Model": _MODEL,
                "Completed": reply,
                "ChatCompletion": _object(
                    ["model", "messages"],
                    model=model,
                    messages={"type": "array", "items": _MESSAGE, "minItems": 1},
                    max_tokens=length,
                    max_completion_tokens=length,
                    **_COMMON,
                ),
                "Completion": _object(
                    ["model", "prompt"],
                    model=model,
                    prompt={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
                    max_tokens=length,
                    **_COMMON,
                ),
            },
        },
    }
