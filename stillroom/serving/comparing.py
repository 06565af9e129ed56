"""The page on which models answer side by side, and are voted on without knowing which is which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.contracts.errors import StorageFault
from stillroom.serving.answers import ApiError
from stillroom.serving.votes import CHOICES, Votes

_PAGES = {
    "/compare": ("compare.html", "text/html"),
    "/compare/page.css": ("compare.css", "text/css"),
    "/compare/page.js": ("compare.js", "text/javascript"),
}
_HEADERS = {
    # Nothing but its own parts: what a model writes cannot load or send anything, even where it became markup.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_LONGEST_VOTE = 1 << 20


@dataclass(frozen=True)
class Preset:
    """A question to start from."""

    messages: list[dict[str, Any]]
    reference: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What the page is about."""

    title: str
    presets: Sequence[Preset] = ()
    system: str = ""
    """The system prompt to begin with."""
    votes: Votes | None = None
    """Where votes are kept; None: there is no voting."""


def compare_routes(comparison: Comparison) -> list[Route]:
    """The page's addresses: /compare and what lies under it."""

    async def page(request: Request) -> Response:
        name, kind = _PAGES[request.url.path]
        text = files("stillroom.serving").joinpath("templates", name).read_bytes()
        return Response(text, media_type=kind, headers=_HEADERS)

    async def data(request: Request) -> Response:
        presets = [{"messages": found.messages, "reference": found.reference} for found in comparison.presets]
        return JSONResponse(
            {
                "title": comparison.title,
                "system": comparison.system,
                "models": list(request.app.state.models),
                "presets": presets,
                "voting": comparison.votes is not None,
            }
        )

    async def told(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(comparison.votes.summary) if comparison.votes else [])

    async def vote(request: Request) -> Response:
        if comparison.votes is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "no votes are kept here")
        found = _read_vote(await _body(request), list(request.app.state.models))
        try:
            await run_in_threadpool(comparison.votes.add, *found)
        except StorageFault as error:
            raise ApiError(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from error
        return await told(request)

    return [
        *(Route(path, page) for path in _PAGES),
        Route("/compare/data", data),
        Route("/compare/votes", told),
        Route("/compare/votes", vote, methods=["POST"]),
    ]


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_VOTE:
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the vote is too long")
    return bytes(body)


def _read_vote(body: bytes, known: list[str]) -> tuple[tuple[str, str], str, str, tuple[str, str]]:
    """A vote's models, choice, prompt and answers; ApiError where it is none."""
    try:
        vote = json.loads(body)
        models, answers = tuple(vote["models"]), tuple(vote["answers"])
        choice, prompt = vote["choice"], vote["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"this is no vote: {error}") from error
    texts = len(answers) == 2 and all(isinstance(text, str) for text in (*answers, prompt))
    two = len(models) == 2 and models[0] != models[1] and all(name in known for name in models)
    if not (texts and two and choice in CHOICES):
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"a vote names two of {', '.join(known)}, one of {', '.join(CHOICES)}, a prompt and two answers",
        )
    return models, choice, prompt, answers
