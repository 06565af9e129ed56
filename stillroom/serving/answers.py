"""Errors in the words of the OpenAI API, so that its clients raise what they would raise there."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

GONE = 499
"""What a client that hung up is answered; nobody reads it, but it keeps the server's log quiet."""

_NO_CONVERSATION = "Failed to parse messages"
"""llama.cpp says so, as an error of its own (500), of messages that are none."""


class ApiError(Exception):
    """A request that cannot be answered; becomes `{"error": {message, type, param, code}}`."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, the same four keys always."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "requests"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """The whole HTTP response."""
        headers = {
            HTTPStatus.UNAUTHORIZED: {"www-authenticate": "Bearer"},
            HTTPStatus.TOO_MANY_REQUESTS: {"retry-after": "1"},
            HTTPStatus.SERVICE_UNAVAILABLE: {"retry-after": "2"},
        }
        return JSONResponse(self.body, self.status, headers.get(HTTPStatus(self.status)))


def from_backend(status: int, body: bytes) -> ApiError:
    """llama.cpp's own error, `{"error": {"code": 400, "message", "type"}}`, in OpenAI's terms.

    Its refusals of our credentials and its internal errors are a bad gateway to the client.
    """
    try:
        error = json.loads(body)["error"]
        message, kind = str(error["message"]), error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = f"the model server answered {status}", None
    if message.startswith(_NO_CONVERSATION):
        return ApiError(HTTPStatus.BAD_REQUEST, message, param="messages")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE
    ):
        return ApiError(HTTPStatus.BAD_GATEWAY, message)
    code = "context_length_exceeded" if kind == "exceed_context_size_error" else None
    return ApiError(status, message, param="messages" if code else None, code=code)


async def on_api_error(_: Request, error: Exception) -> Response:
    """Exception handler for ApiError."""
    assert isinstance(error, ApiError)
    return error.response


async def on_unknown_route(request: Request, error: Exception) -> Response:
    """Exception handler for 404 and 405."""
    status = int(getattr(error, "status_code", HTTPStatus.NOT_FOUND))
    answer = ApiError(
        status, f"Invalid URL ({request.method} {request.url.path})", code="unknown_url"
    ).response
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


async def on_disconnect(_: Request, __: Exception) -> Response:
    """Exception handler for a client that hung up."""
    return Response(status_code=GONE)


async def on_bug(_: Request, __: Exception) -> Response:
    """Exception handler for what should not happen; the traceback goes to the server's log only."""
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed while answering").response
