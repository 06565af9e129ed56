"""The OpenAI-compatible front: checks a request, passes its bytes on to llama.cpp, passes the bytes back."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
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
from stillroom.serving.cascading import Cascading
from stillroom.serving.comparing import Comparison, compare_routes
from stillroom.serving.metrics import Measured, Meters, metrics
from stillroom.serving.openapi import document
from stillroom.serving.relay import Backend, Relay, ask, unless_gone, unreachable

_KEYED = ("/v1", "/compare/data", "/compare/votes")
"""What begins so needs a key; the page itself holds nothing and asks for one."""
_CHAT = "/v1/chat/completions"
_COMPLETIONS = (_CHAT, "/v1/completions")


def create_app(
    backends: Mapping[str, Backend | Cascading],
    *,
    api_keys: Sequence[str] = (),
    max_request_bytes: int = 8 << 20,
    most_requests: int = 1024,
    most_tokens: int | None = None,
    comparison: Comparison | None = None,
) -> Starlette:
    """An ASGI app that answers /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics.

    Requests and answers, streams included, go through as bytes. Faults are answered as OpenAI's API does.
    A client that hangs up ends its request at the backend.

    Args:
        backends: who answers, by the names that clients may ask for. Their addresses may be set later, when a
            server moves. A cascade answers conversations; completions of bare texts are its student's.
        api_keys: where given, every /v1 request must carry one of them as a bearer token.
        max_request_bytes: longer request bodies are refused (413).
        most_requests: completions asked for at once, those that wait for llama.cpp included; more are refused (429).
        most_tokens: requests for longer answers are refused; for those that name no length, the backend has to know.
        comparison: where given, /compare is a page that asks several models at once.

    Raises:
        UserError: an API key is empty.
    """
    if not all(key.strip() for key in api_keys):
        raise UserError(
            "the API key is empty", expected="some characters", do="set the key, or serve without one"
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # A connection for each request: under load llama.cpp's server closes those that it had kept, while they are
        # being used again, and whether a request was read by then nobody knows.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        # No limit on the answer's time: a long prompt on a slow machine takes minutes before its first token.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=["User-Agent"]
        ) as app.state.session:
            yield

    meters = Meters()
    for name, found in backends.items():
        if isinstance(found, Cascading):
            meters.follow(name, found.escalations)
    app = Starlette(
        routes=[
            *(Route(path, _complete, methods=["POST"]) for path in _COMPLETIONS),
            Route("/v1/models", _models),
            Route("/v1/models/{model:path}", _model),
            Route("/health", _health),
            Route("/metrics", metrics),
            Route("/openapi.json", _openapi),
            *(compare_routes(comparison) if comparison else ()),
        ],
        middleware=[
            Middleware(Measured, meters=meters),
            *([Middleware(_BearerKey, api_keys=api_keys)] if api_keys else []),
            Middleware(_Crowd, most=most_requests),
        ],
        exception_handlers={
            ApiError: on_api_error,
            ClientDisconnect: on_disconnect,
            HTTPStatus.NOT_FOUND: on_unknown_route,
            HTTPStatus.METHOD_NOT_ALLOWED: on_unknown_route,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )
    app.state.cascades = {name: found for name, found in backends.items() if isinstance(found, Cascading)}
    app.state.backends = {
        name: found.student if isinstance(found, Cascading) else found for name, found in backends.items()
    }
    app.state.meters = meters
    app.state.models = {name: _card(name, int(time.time())) for name in backends}
    app.state.max_request_bytes, app.state.most_tokens = max_request_bytes, most_tokens
    return app


class _BearerKey:
    """Refuses requests without a key, before anything of them is read."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self.app, self._keys = app, [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_KEYED):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # All of them are compared, so that the time tells nothing of which is near.
            right = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
            if scheme.lower() != "bearer" or not any(right):
                message = "Incorrect API key provided." if given else "You didn't provide an API key."
                refusal = ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")
                await refusal.response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class _Crowd:
    """Refuses completions while as many are under way as may be."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self._most, self._running = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _COMPLETIONS:
            await self.app(scope, receive, send)
            return
        if self._running >= self._most:
            message = f"{self._most:,} requests are being answered or wait; try again in a moment"
            refusal = ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code="rate_limit_exceeded")
            await refusal.response(scope, receive, send)
            return
        self._running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._running -= 1


def _card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "stillroom"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": list(request.app.state.models.values())})


async def _model(request: Request) -> Response:
    return JSONResponse(_known(request, request.path_params["model"]))


async def _openapi(request: Request) -> Response:
    state = request.app.state
    return JSONResponse(document(list(state.models), state.most_tokens))


async def _health(request: Request) -> Response:
    for backend in request.app.state.backends.values():
        if backend.local:
            await _look(request.app.state.session, backend)
    return JSONResponse({"status": "ok"})


async def _look(session: aiohttp.ClientSession, backend: Backend) -> None:
    """ApiError where a llama.cpp server is not ready."""
    try:
        async with session.get(f"{backend.address}/health", timeout=aiohttp.ClientTimeout(total=5)) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error
    if answer.status != HTTPStatus.OK:
        raise from_backend(HTTPStatus.SERVICE_UNAVAILABLE, body)


async def _complete(request: Request) -> Response:
    body = await _body(request)
    name, tree = _check(request, body)
    cascading: Cascading | None = request.app.state.cascades.get(name)
    if cascading is not None and request.url.path == _CHAT:
        return await cascading.answer(request, tree)
    backend = request.app.state.backends[name]
    upstream = await unless_gone(request, ask(request.app.state.session, backend, request.url.path, body))
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


def _check(request: Request, body: bytes) -> tuple[str, dict[str, Any]]:
    """The model that is asked for, and the request; refuses what a backend would only misunderstand."""
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
    if (most := request.app.state.most_tokens) is not None:
        _check_length(tree, most)
    return name, tree


def _check_length(asked: dict[str, Any], most: int) -> None:
    """Refuse an answer longer than may be, whichever name its length goes by; below 0 llama.cpp knows no end."""
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        length = asked.get(name)
        if isinstance(length, int | float) and not 0 <= length <= most:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"{name} is {length}; this server writes at most {most:,} tokens",
                param=name,
                code="invalid_value",
            )


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
