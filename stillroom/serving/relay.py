"""The way to a model's server and back: a request's bytes out, an answer's bytes as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from stillroom.serving.answers import ApiError

Result = TypeVar("Result")


@dataclass
class Backend:
    """A server that answers for one of the models."""

    url: str | None = None
    """Base URL of an OpenAI-compatible server: of a local one what comes before /v1, of others /v1 or what they have in its
    place. None while there is none."""
    model: str | None = None
    """The model's name there, where it is another one."""
    key: str | None = field(default=None, repr=False)
    """Its API key."""
    local: bool = True
    """Whether it is llama.cpp's server, which tells of its health and its counts."""
    file: Path | None = None
    """The .gguf file that a server of our own is to answer with; `url` is known once it does."""

    @property
    def address(self) -> str:
        """Its address, which it must have.

        Raises:
            ApiError: there is none at present.
        """
        if self.url is None:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded; try again in a moment")
        return self.url.rstrip("/")

    def at(self, path: str) -> str:
        """The address of one of our paths there."""
        return self.address + (path if self.local else path.removeprefix("/v1"))


async def ask(
    session: aiohttp.ClientSession, backend: Backend, path: str, body: bytes
) -> aiohttp.ClientResponse:
    """The backend's answer, its body not yet read. The request goes on as it came, but for another model's name.

    Raises:
        ApiError: it cannot be reached.
    """
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if backend.key is not None:
        headers["authorization"] = f"Bearer {backend.key}"
    if backend.model is not None:
        body = json.dumps({**json.loads(body), "model": backend.model}).encode()
    try:
        return await session.post(backend.at(path), data=body, headers=headers)
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error


def unreachable(error: Exception) -> ApiError:
    """What a client is told when the backend does not answer."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the model is not running; try again in a moment")
    return ApiError(HTTPStatus.BAD_GATEWAY, "the model stopped while answering; try again")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; where the client hangs up first, the work is cancelled.

    Raises:
        ClientDisconnect: the client hung up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Relay(StreamingResponse):
    """A stream of events passed on as they come; ended in every case, also where the client left before it began."""

    def __init__(self, upstream: aiohttp.ClientResponse, headers: Mapping[str, str] | None = None) -> None:
        self._upstream = upstream
        super().__init__(
            self._lines(),
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})},
            media_type="text/event-stream",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._upstream.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        """Whole lines only, so that a backend that dies in mid-line leaves nothing that a client cannot parse."""
        half = b""
        try:
            async for chunk in self._upstream.content.iter_any():
                lines, newline, half = (half + chunk).rpartition(b"\n")
                if newline:
                    yield lines + newline
        except (aiohttp.ClientError, OSError) as error:
            yield b"\ndata: " + json.dumps(unreachable(error).body).encode() + b"\n\n"
        else:
            yield half
