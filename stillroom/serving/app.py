"""The OpenAI-compatible front: checks a request, passes its bytes on to llama.cpp, passes the bytes back."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from stillroom.contracts.errors import UserError
from stillroom.serving.answers import (
    ApiError,
    from_backend,
    on_api_error,
    on_bug,
    on_disconnect,
    on_unknown_route,
)
from stillroom.serving.relay import Relay, ask, backend_of, unless_gone, unreachable

_IDLE_SECONDS = 2.0
"""llama.cpp's server closes idle connections after five seconds; one that it is closing must not be used again."""


def create_app(
    backend_url: str | None,
    *,
    models: list[str],
    api_key: str | None = None,
    max_request_bytes: int = 8 << 20,
) -> Starlette:
    """An ASGI app that answers /v1/chat/completions, /v1/completions, /v1/models and /health.

    Requests and answers, streams included, go through as bytes. Faults are answered as OpenAI's API does.
    A client that hangs up ends its request at the backend.

    Args:
        backend_url: base URL of a llama.cpp server. `app.state.backend_url` may be set later, when the server
            moves; None while there is none.
        models: the names that clients may ask for.
        api_key: where given, every /v1 request must carry it as a bearer token.
        max_request_bytes: longer request bodies are refused (413).

    Raises:
        UserError: the API key is empty.
    """
    if api_key is not None and not api_key.strip():
        raise UserError(
            "the API key is empty", expected="some characters", do="set the key, or serve without one"
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS)
        # No limit on the answer's time: a long prompt on a slow machine takes minutes before its first token.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=["User-Agent"]
        ) as app.state.session:
            yield

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _complete, methods=["POST"]),
            Route("/v1/completions", _complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/v1/models/{model:path}", _model),
            Route("/health", _health),
        ],
        middleware=[Middleware(_BearerKey, api_key=api_key)] if api_key is not None else [],
        exception_handlers={
            ApiError: on_api_error,
            ClientDisconnect: on_disconnect,
            HTTPStatus.NOT_FOUND: on_unknown_route,
            HTTPStatus.METHOD_NOT_ALLOWED: on_unknown_route,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )
    app.state.backend_url = backend_url
    app.state.models = {name: _card(name, int(time.time())) for name in models}
    app.state.max_request_bytes = max_request_bytes
    return app


class _BearerKey:
    """Refuses /v1 requests without the key, before anything of them is read."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app, self._key = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self._key):
                message = "Incorrect API key provided." if given else "You didn't provide an API key."
                refusal = ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")
                await refusal.response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "stillroom"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": list(request.app.state.models.values())})


async def _model(request: Request) -> Response:
    return JSONResponse(_known(request, request.path_params["model"]))


async def _health(request: Request) -> Response:
    try:
        async with request.app.state.session.get(
            f"{backend_of(request)}/health", timeout=aiohttp.ClientTimeout(total=5)
        ) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error
    if answer.status != HTTPStatus.OK:
        raise from_backend(HTTPStatus.SERVICE_UNAVAILABLE, body)
    return JSONResponse({"status": "ok"})


async def _complete(request: Request) -> Response:
    body = await _body(request)
    _check(request, body)
    upstream = await unless_gone(request, ask(request, body))
    if upstream.status == HTTPStatus.OK and upstream.content_type == "text/event-stream":
        return Relay(upstream)
    try:
        answer = await unless_gone(request, upstream.read())
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error
    finally:
        upstream.close()
    if upstream.status >= HTTPStatus.BAD_REQUEST:
        raise from_backend(upstream.status, answer)
    return Response(answer, upstream.status, media_type=upstream.headers.get("content-type"))


async def _body(request: Request) -> bytes:
    limit = request.app.state.max_request_bytes
    too_long = ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is longer than {limit:,} bytes.",
        code="request_too_large",
    )
    declared = request.headers.get("content-length", "0")
    if int(declared) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_long
    return bytes(body)


def _check(request: Request, body: bytes) -> None:
    """Refuse what the backend would only misunderstand: bodies that are not JSON objects, unknown models."""
    try:
        tree = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"We could not parse the JSON body of your request: {error}",
            code="invalid_json",
        ) from error
    name = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(name, str):
        raise ApiError(HTTPStatus.BAD_REQUEST, "you must provide a model parameter", param="model")
    _known(request, name)


def _known(request: Request, name: str) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = request.app.state.models
    if name not in models:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"The model `{name}` does not exist; served here: {', '.join(models)}",
            param="model",
            code="model_not_found",
        )
    return models[name]
