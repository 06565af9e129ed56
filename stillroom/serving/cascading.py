"""The student answers what it answers well enough, the frontier model the rest: one name for clients, two models behind it.

The student is asked first, whole, since the decision goes by how sure it was of every token; a client that streams gets its
answer in one piece. Where the decision falls on the question alone, whoever answers streams at once. A frontier model that
fails is no fault of the request's: the student's answer stands, and says so.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from stillroom.checks import equal_text
from stillroom.contracts.conversations import with_system
from stillroom.routing import Attempt, Cascade, Decision
from stillroom.serving.answers import ApiError, from_backend
from stillroom.serving.escalations import Escalations
from stillroom.serving.relay import Backend, Relay, ask, unless_gone, unreachable

Tree = dict[str, Any]
_DAY = 86_400
_HEADER = "x-stillroom-"


@dataclass
class Cascading:
    """A student, the model behind it, and the rule between them."""

    student: Backend
    frontier: Backend
    rule: Cascade
    valid: Callable[[str], bool | None] = lambda _: None
    """Whether an answer has the form that the task wants."""
    decide_on: Literal["answer", "question"] = "answer"
    system: str | None = None
    """Put before conversations without a system prompt, as it was where the rule was learned."""
    timeout: float = 60.0
    """Seconds that the frontier model may take to begin its answer."""
    most_a_day: int | None = None
    """Questions that may be sent on between two midnights (UTC)."""
    check_share: float = 0.0
    """Of the answers that the student keeps, the share for which the frontier model is asked all the same, afterwards."""
    agree: Callable[[str, str], bool] = equal_text
    """Whether the student's text says what the frontier model's says."""
    escalations: Escalations = field(default_factory=Escalations)
    _checks: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    async def answer(self, request: Request, tree: Tree) -> Response:
        """Answer a chat completion.

        Raises:
            ApiError: the request is none, or the student cannot be reached.
        """
        session: aiohttp.ClientSession = request.app.state.session
        asked = self._completed(tree)
        if self.decide_on == "question":
            decision = self.rule.decide(Attempt(_question(asked["messages"])))
            return await self._by_question(request, session, asked, decision)
        reply = await unless_gone(request, _whole(session, self.student, _telling(asked)))
        decision = self._decide(asked, reply)
        if not decision.keep:
            try:
                return await unless_gone(request, self._sent_on(session, asked, decision))
            except _Failed as error:
                decision = replace(decision, why=f"{decision.why}; {error}")
                return _told(asked, _untold(tree, reply), self._note("student", decision, fallback=True))
        elif random.random() < self.check_share:
            task = asyncio.create_task(self._check(session, asked, reply))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
        return _told(asked, _untold(tree, reply), self._note("student", decision))

    async def _by_question(
        self, request: Request, session: aiohttp.ClientSession, asked: Tree, decision: Decision
    ) -> Response:
        fallback = False
        if not decision.keep:
            try:
                return await unless_gone(request, self._sent_on(session, asked, decision))
            except _Failed as error:
                decision, fallback = replace(decision, why=f"{decision.why}; {error}"), True
        note = self._note("student", decision, fallback=fallback)
        return await _passed(await unless_gone(request, _begun(session, self.student, asked)), note)

    async def _sent_on(self, session: aiohttp.ClientSession, asked: Tree, decision: Decision) -> Response:
        """The frontier model's answer.

        Raises:
            _Failed: there is none; why.
        """
        today = int(time.time() // _DAY)
        if self.most_a_day is not None and self.escalations.on(today) >= self.most_a_day:
            raise _Failed("no more questions may be sent on today")
        try:
            async with asyncio.timeout(self.timeout):
                upstream = await _begun(session, self.frontier, asked)
                streams = upstream.content_type == "text/event-stream"
                body = b"" if streams else await _read(upstream)
        except TimeoutError as error:
            raise self._failed(f"the frontier model did not answer within {self.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed("the frontier model stopped while answering") from error
        except ApiError as error:
            raise self._failed(f"the frontier model: {error.message}") from error
        note = self._note("frontier", decision)
        if streams:
            self.escalations.sent(today, asked, None)
            return Relay(upstream, _headers(note))
        try:
            reply = json.loads(body)
            if not isinstance(reply["choices"], list):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._failed("what the frontier model answered is no chat completion") from error
        self.escalations.sent(today, asked, reply)
        return _json(reply, note)

    async def _check(self, session: aiohttp.ClientSession, asked: Tree, reply: Tree) -> None:
        """Hold a kept answer against what the frontier model says; nobody waits for it."""
        today = int(time.time() // _DAY)
        if self.most_a_day is not None and self.escalations.on(today) >= self.most_a_day:
            return
        try:
            async with asyncio.timeout(self.timeout):
                other = await _whole(session, self.frontier, _plain(asked))
            texts = [found["choices"][0]["message"].get("content") or "" for found in (reply, other)]
        except (ApiError, TimeoutError, ValueError, LookupError, TypeError, AttributeError):
            return  # what cannot be checked is not told of twice: the next escalation says what is wrong
        self.escalations.sent(today, asked, other)
        self.escalations.checked(self.agree(*texts))

    def _failed(self, why: str) -> _Failed:
        self.escalations.failed(why)
        return _Failed(why)

    def _completed(self, tree: Tree) -> Tree:
        """The request as the rule knows requests: with the system prompt, and greedy unless it says otherwise."""
        messages = tree.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                "you must provide messages, a list of objects with a role",
                param="messages",
            )
        return {"temperature": 0, **tree, "messages": with_system(messages, self.system)}

    def _decide(self, asked: Tree, reply: Tree) -> Decision:
        """On all the answers that were asked for: the one that is least good decides."""
        decisions = [self.rule.decide(attempt) for attempt in _attempts(asked["messages"], reply, self.valid)]
        worst = min(decisions, key=lambda found: (found.keep, found.score or -1.0))
        self.escalations.scored(worst.score)
        return worst

    def _note(self, who: str, decision: Decision, *, fallback: bool = False) -> Tree:
        self.escalations.answered(who, fallback)
        return {
            "answered_by": who,
            "score": decision.score,
            "chance": decision.chance,
            "why": decision.why,
            "fallback": fallback,
        }


class _Failed(Exception):
    """The frontier model has not answered."""


async def _begun(session: aiohttp.ClientSession, backend: Backend, asked: Tree) -> aiohttp.ClientResponse:
    """A backend's answer with its body still to come; ApiError where it refuses."""
    upstream = await ask(session, backend, "/v1/chat/completions", json.dumps(asked).encode())
    if upstream.status >= HTTPStatus.BAD_REQUEST:
        raise from_backend(upstream.status, await _read(upstream))
    return upstream


async def _read(upstream: aiohttp.ClientResponse) -> bytes:
    """The whole body; its connection is closed also where nobody waits for it any more."""
    try:
        return await upstream.read()
    finally:
        upstream.close()


async def _whole(session: aiohttp.ClientSession, backend: Backend, asked: Tree) -> Tree:
    upstream = await _begun(session, backend, asked)
    try:
        found: Tree = json.loads(await _read(upstream))
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error
    return found


async def _passed(upstream: aiohttp.ClientResponse, note: Tree) -> Response:
    """An answer as it comes, with its note."""
    if upstream.content_type == "text/event-stream":
        return Relay(upstream, _headers(note))
    try:
        return _json(json.loads(await _read(upstream)), note)
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error) from error


def _plain(asked: Tree) -> Tree:
    """The request for a whole answer."""
    return {name: value for name, value in asked.items() if name not in ("stream", "stream_options")}


def _telling(asked: Tree) -> Tree:
    """The request to the student: whole, and with what it thought of each token."""
    return {**_plain(asked), "logprobs": True, "top_logprobs": asked.get("top_logprobs") or 1}


def _untold(tree: Tree, reply: Tree) -> Tree:
    """The student's reply without what only the decision wanted to know."""
    if tree.get("logprobs"):
        return reply
    choices = [
        {name: part for name, part in choice.items() if name != "logprobs"} for choice in reply["choices"]
    ]
    return {**reply, "choices": choices}


def _attempts(messages: list[Tree], reply: Tree, valid: Callable[[str], bool | None]) -> Iterator[Attempt]:
    for choice in reply["choices"]:
        told = (choice.get("logprobs") or {}).get("content") or []
        yield Attempt(
            _question(messages),
            [place["logprob"] for place in told] or None,
            valid=valid(choice["message"].get("content") or ""),
            complete=choice.get("finish_reason") in ("stop", "tool_calls"),
        )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _question(messages: list[Tree]) -> str:
    """What the user says, as the rule was taught to read it; of content in parts the text."""

    def text(content: Any) -> str:
        if isinstance(content, list):
            return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    return " ".join(text(message.get("content")) for message in messages if message.get("role") == "user")


def _told(asked: Tree, reply: Tree, note: Tree) -> Response:
    """The student's whole reply, as a stream where the client wants one."""
    if not asked.get("stream"):
        return _json(reply, note)
    usage = (asked.get("stream_options") or {}).get("include_usage")
    return StreamingResponse(
        _events(reply, note, bool(usage)),
        headers={"cache-control": "no-cache", "x-accel-buffering": "no", **_headers(note)},
        media_type="text/event-stream",
    )


async def _events(reply: Tree, note: Tree, usage: bool) -> AsyncIterator[bytes]:
    """A reply as the events of a stream: an answer in one piece, then its end."""
    shared = {name: reply.get(name) for name in ("id", "created", "model", "system_fingerprint")}
    shared["object"] = "chat.completion.chunk"
    for choice in reply["choices"]:
        message = {name: value for name, value in choice["message"].items() if value is not None}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
        place = {"index": choice.get("index", 0)}
        said = {**place, "delta": message, "logprobs": choice.get("logprobs"), "finish_reason": None}
        yield _event({**shared, "choices": [said], "stillroom": note})
        yield _event(
            {**shared, "choices": [{**place, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        )
    if usage:
        yield _event({**shared, "choices": [], "usage": reply.get("usage")})
    yield b"data: [DONE]\n\n"


def _event(tree: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n".encode()


def _json(reply: Tree, note: Tree) -> Response:
    body = json.dumps({**reply, "stillroom": note}, ensure_ascii=False).encode()
    return Response(body, media_type="application/json", headers=_headers(note))


def _headers(note: Tree) -> dict[str, str]:
    """The note for clients that see no body's extensions, and for streams that pass as they are."""
    headers = {f"{_HEADER}answered-by": note["answered_by"]}
    if note["score"] is not None:
        headers[f"{_HEADER}score"] = f"{note['score']:.4f}"
    if note["fallback"]:
        headers[f"{_HEADER}fallback"] = "true"
    return headers
