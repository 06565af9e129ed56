"""A teacher behind an API that misbehaves in every way that real ones do; a real HTTP server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from stillroom.contracts.errors import ServiceFault, TeacherError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.api import ApiModel
from stillroom.models.budget import duration
from stillroom.models.chat_completions import ChatReply, ChatRequest
from stillroom.models.retrying import retry_after
from stillroom.models.throttle import Throttle

KEY = "sk-very-secret-1234567890"
Handler = Callable[[web.Request, dict[str, Any], int], Awaitable[web.StreamResponse]]


def completion(text: str = "hi", finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


class Server:
    """An HTTP server in a thread: `handler(request, body, attempt)`, where attempt counts a prompt's requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.attempts: Counter[str] = Counter()
        self.connections: set[Any] = set()
        self.active = self.most = 0
        self.handler: Handler = echo
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self.ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.loop.run_until_complete(self.runner.setup())
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        self.ready.set()
        self.loop.run_forever()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        attempt = self.attempts[prompt]
        self.attempts[prompt] += 1
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport.get_extra_info("peername") if request.transport else None)
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            return await self.handler(request, body, attempt)
        finally:
            self.active -= 1

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)


async def echo(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
    return web.json_response(completion("echo " + body["messages"][-1]["content"]))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ApiModel]]:
    """Makes teachers and closes them at the end."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teachers: list[ApiModel] = []

    def connect(url: str, **settings: Any) -> ApiModel:
        settings = {"concurrency": 8, "timeout": 5, "attempts": 4, "first_wait": 0.01, **settings}
        teachers.append(ApiModel(url, "large", **settings))
        return teachers[-1]

    yield connect
    for teacher in teachers:
        teacher.close()


@pytest.fixture
def teacher(server: Server, connect: Callable[..., ApiModel]) -> ApiModel:
    return connect(server.url)


def requests(count: int) -> Iterator[Request]:
    return (Request(f"k{i}", [{"role": "user", "content": f"q{i}"}]) for i in range(count))


def ask(teacher: ApiModel, count: int = 1, **sampling: Any) -> dict[str, Reply]:
    replies = [
        (request.key, reply) for request, reply in teacher.answer(requests(count), Sampling(**sampling))
    ]
    assert len({key for key, _ in replies}) == len(replies) == count
    return dict(replies)


def test_every_request_is_answered_once_over_few_connections(server: Server, teacher: ApiModel) -> None:
    replies = ask(teacher, 200, temperature=0.5, max_new_tokens=7)
    assert all(reply.text == f"echo q{key[1:]}" and reply.finish == "stop" for key, reply in replies.items())
    assert (replies["k0"].prompt_tokens, replies["k0"].completion_tokens) == (3, 2)
    assert len(server.connections) <= 8
    assert server.most <= 8
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("large", 0.5, 7)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_seeds_follow_the_request_and_not_the_order(server: Server, teacher: ApiModel) -> None:
    ask(teacher, 20)
    first = {body["messages"][0]["content"]: body["seed"] for body in server.bodies}
    server.bodies.clear()
    list(teacher.answer(list(requests(20))[::-1], Sampling()))
    assert first == {body["messages"][0]["content"]: body["seed"] for body in server.bodies}
    assert len(set(first.values())) == 20
    assert max(first.values()) < 2**31


@pytest.mark.parametrize(
    "fault", ["429", "429 seconds", "429 date", "500", "503", "cut", "half", "no choices", "slow"]
)
def test_a_fault_that_passes_costs_nothing_but_another_attempt(
    server: Server, connect: Callable[..., ApiModel], fault: str
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        prompt = body["messages"][-1]["content"]
        if attempt or int(prompt[1:]) % 3:
            return await echo(request, body, attempt)
        match fault.split():
            case ["429"]:
                return web.json_response({"error": {"message": "slow down"}}, status=429)
            case ["429", kind]:
                value = "0.2" if kind == "seconds" else formatdate(time.time() + 1, usegmt=True)
                return web.Response(status=429, headers={"Retry-After": value}, text="slow down")
            case ["cut"]:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case ["half"]:
                return web.Response(
                    text=json.dumps(completion("never"))[:40], content_type="application/json"
                )
            case ["no", _]:
                return web.json_response({"error": {"message": "overloaded"}})
            case ["slow"]:
                await asyncio.sleep(60)
        return web.Response(status=int(fault), text="<html>oops</html>")

    server.handler = handler
    replies = ask(connect(server.url, timeout=0.5 if fault == "slow" else 5), 20)
    assert all(reply.text == f"echo q{key[1:]}" for key, reply in replies.items())
    assert sum(server.attempts.values()) == 20 + 7


def test_no_request_is_sent_while_the_server_wants_none(server: Server, teacher: ApiModel) -> None:
    sent: list[float] = []

    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        sent.append(time.monotonic())
        if len(sent) == 1:
            return web.Response(status=429, headers={"Retry-After": "0.6"})
        await asyncio.sleep(0.1)
        return await echo(request, body, attempt)

    server.handler = handler
    ask(teacher, 40)
    # The eight that were under way together have gone out; of the others none did before the time was over.
    assert not [at for at in sent[8:] if at - sent[0] < 0.55]


def test_a_request_that_always_fails_comes_back_as_failed_and_holds_up_no_other(
    server: Server, teacher: ApiModel
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if body["messages"][-1]["content"] == "q3":
            return web.Response(status=500, text="boom")
        return await echo(request, body, attempt)

    server.handler = handler
    replies = ask(teacher, 30)
    assert replies["k3"].finish == "failed"
    assert "HTTP 500: boom (after 4 attempts)" in (replies["k3"].error or "")
    assert [reply.finish for reply in replies.values()].count("stop") == 29
    assert server.attempts["q3"] == 4


def test_a_server_that_only_fails_stops_the_work(server: Server, teacher: ApiModel) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.Response(status=500, text="boom")

    server.handler = handler
    seen = []
    with pytest.raises(ServiceFault, match="keeps failing"):
        seen.extend(teacher.answer(requests(10_000), Sampling()))
    assert 8 <= len(seen) <= 32
    assert all(reply.finish == "failed" for _, reply in seen)


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}, "refuses the API key"),
        (403, {"message": f"{KEY} may not"}, "refuses the API key"),
        (404, {"message": "no model large"}, "does not know the model large"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "no quota left"),
    ],
)
def test_what_no_retry_can_mend_is_an_error_at_once_and_never_shows_the_key(
    server: Server, teacher: ApiModel, status: int, error: dict[str, str], says: str
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.json_response({"error": error}, status=status)

    server.handler = handler
    with pytest.raises(TeacherError, match=says) as caught:
        ask(teacher, 100)
    assert all((caught.value.what, caught.value.got, caught.value.expected, caught.value.do))
    assert KEY not in str(caught.value)
    assert max(server.attempts.values()) == 1


def test_a_wrong_path_or_a_web_page_is_an_error_at_once(
    server: Server, teacher: ApiModel, connect: Callable[..., ApiModel]
) -> None:
    async def page(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.Response(text="<html>welcome</html>", content_type="text/html")

    with pytest.raises(TeacherError, match="this address"):
        ask(connect(server.url + "/wrong"))
    server.handler = page
    with pytest.raises(TeacherError, match="web page"):
        ask(teacher)


def test_an_unreachable_address_is_an_error_at_once(connect: Callable[..., ApiModel]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(TeacherError, match="cannot be reached"):
            ask(connect(f"http://127.0.0.1:{port}/v1"))


@pytest.mark.parametrize("url", ["ftp://host/v1", "127.0.0.1:80", "http://", "http://me:secret@host/v1"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(TeacherError, match="no usable address") as caught:
        ApiModel(url, "large")
    assert "secret" not in str(caught.value)


def test_the_default_provider_needs_a_key_and_a_local_server_does_not(
    server: Server, connect: Callable[..., ApiModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match="no API key"):
        connect("openai")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert ask(connect("openai"))["k0"].text == "echo q0"
    assert "Authorization" not in server.headers[0]


def test_a_bad_request_fails_alone(server: Server, teacher: ApiModel) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        match body["messages"][-1]["content"]:
            case "q1":
                return web.json_response({"error": {"message": "too long"}}, status=400)
            case "q2":
                return web.json_response(
                    {"error": {"message": "filtered", "code": "content_filter"}}, status=400
                )
        return await echo(request, body, attempt)

    server.handler = handler
    replies = ask(teacher, 4)
    assert [(replies[f"k{i}"].finish) for i in range(4)] == ["stop", "failed", "refused", "stop"]
    assert "too long" in (replies["k1"].error or "")
    assert max(server.attempts.values()) == 1


def test_a_provider_that_wants_the_newer_name_of_the_limit_gets_it(server: Server, teacher: ApiModel) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": message}}, status=400)
        return web.json_response(completion(str(body["max_completion_tokens"])))

    server.handler = handler
    assert {reply.text for reply in ask(teacher, 30, max_new_tokens=9).values()} == {"9"}
    assert server.attempts["q29"] == 1


@pytest.mark.parametrize(
    ("answer", "finish", "reasoning", "error"),
    [
        (completion("cut", "length"), "length", None, None),
        (completion("", "content_filter"), "refused", None, "the provider's content filter"),
        (completion("", refusal="I cannot"), "refused", None, "I cannot"),
        (completion("42", reasoning_content="six times seven"), "stop", "six times seven", None),
        (completion("42", reasoning="six times seven"), "stop", "six times seven", None),
        (completion(None, "length", reasoning_content="six"), "length", "six", None),  # type: ignore[arg-type]
    ],
)
def test_what_the_api_says_beside_the_text_is_kept(
    server: Server, teacher: ApiModel, answer: dict[str, Any], finish: str, reasoning: str, error: str
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.json_response(answer)

    server.handler = handler
    reply = ask(teacher)["k0"]
    assert (reply.finish, reply.reasoning, reply.error) == (finish, reasoning, error)
    assert reply.text == (answer["choices"][0]["message"]["content"] or "")


def test_tools_and_schemas_are_passed_through_and_calls_come_back(
    server: Server, connect: Callable[..., ApiModel]
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "count", "arguments": "{}"}}

    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.json_response(completion(None, "tool_calls", tool_calls=[call]))  # type: ignore[arg-type]

    server.handler = handler
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    teacher = connect(server.url, parameters={"response_format": schema, "temperature": None})
    tools = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
    armed = ChatRequest("k0", [{"role": "user", "content": "q0"}], 0, "p", {"tools": tools})
    ((_, reply),) = teacher.answer([armed], Sampling())
    assert (reply.finish, reply.text) == ("stop", "")
    assert isinstance(reply, ChatReply)
    assert reply.tool_calls == [call]
    (body,) = server.bodies
    assert (body["response_format"], body["tools"]) == (schema, tools)
    assert "temperature" not in body


def test_what_arrived_before_an_error_is_yielded_before_it_is_raised(
    server: Server, connect: Callable[..., ApiModel]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if body["messages"][-1]["content"] == "q5":
            return web.json_response({"error": {"message": "out"}}, status=401)
        await asyncio.sleep(0.3)
        return await echo(request, body, attempt)

    server.handler = handler
    stream = connect(server.url).answer(requests(30), Sampling())
    assert len([next(stream) for _ in range(7)]) == 7  # those that were in flight beside it
    with pytest.raises(TeacherError, match="refuses the API key"):
        next(stream)


def test_an_answer_that_comes_broken_is_paid_for_five_times_at_most(
    server: Server, connect: Callable[..., ApiModel]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.Response(text='{"choices": [{"mess', content_type="application/json")

    server.handler = handler
    reply = ask(connect(server.url, attempts=50))["k0"]
    assert reply.finish == "failed"
    assert server.attempts["q0"] == 5


def test_top_logprobs_are_asked_for_and_kept(server: Server, teacher: ApiModel) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
        answer = completion()
        top = [
            {"token": "hi", "logprob": -0.1, "bytes": None},
            {"token": "ho", "logprob": -2.5, "bytes": None},
        ]
        answer["choices"][0]["logprobs"] = {
            "content": [{"token": "hi", "logprob": -0.1, "top_logprobs": top}]
        }
        return web.json_response(answer)

    server.handler = handler
    reply = ask(teacher, top_logprobs=2)["k0"]
    assert reply.logprobs == [-0.1]
    assert reply.alternatives == [[("hi", -0.1), ("ho", -2.5)]]
    assert reply.token_ids is None


def test_requests_are_taken_only_as_answers_are_fetched(teacher: ApiModel) -> None:
    taken = 0

    def million() -> Iterator[Request]:
        nonlocal taken
        for taken, request in enumerate(requests(1_000_000), 1):  # noqa: B007
            yield request

    stream = teacher.answer(million(), Sampling())
    for _ in range(50):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert taken <= 50 + 4 * 8


def test_a_fault_of_the_caller_comes_through(teacher: ApiModel) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(3)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(teacher.answer(broken(), Sampling()))


def test_closing_twice_is_harmless(server: Server) -> None:
    teacher = ApiModel(server.url, "large")
    replies = ask(teacher, 3)
    teacher.close()
    teacher.close()
    assert len(replies) == 3


def test_the_throttle_gives_way_once_a_round_and_recovers_slowly() -> None:
    throttle = Throttle(16)
    first, second = throttle.enter(), throttle.enter()
    throttle.limited(first, None)
    throttle.limited(second, None)
    assert throttle.limit == 12
    throttle.limited(throttle.enter(), None)
    assert throttle.limit == 9
    for _ in range(50):
        throttle.succeeded()
    assert throttle.limit == 11
    for _ in range(1000):
        throttle.succeeded()
    assert throttle.limit == 16


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("settings", [{"requests_per_minute": 90}, {"tokens_per_minute": 9000}])
def test_no_minute_gets_more_than_the_budget_and_the_budget_is_used(settings: dict[str, int]) -> None:
    clock = Clock()
    throttle = Throttle(1000, **settings, clock=clock)
    sent = []
    while clock.now < 400:
        if (wait := throttle.wait()) == 0:
            sent.append(clock.now)
            throttle.leave(throttle.enter(tokens=150), 100)
        else:
            clock.now += wait
    minutes = [sum(start <= at < start + 60 for at in sent) for start in sent if start < 340]
    assert max(minutes) <= 91  # the last request of a minute may run into debt
    assert len(sent) >= 0.95 * 90 * 5


def test_nothing_is_sent_while_the_headers_say_that_nothing_is_left() -> None:
    clock = Clock()
    throttle = Throttle(8, clock=clock)
    told = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m30s"}
    for _ in range(2):
        ticket = throttle.enter()
        throttle.heard(ticket, told)
        throttle.leave(ticket)
    tickets = []
    while throttle.wait() == 0:
        tickets.append(throttle.enter())
    assert len(tickets) == 3
    assert throttle.wait() == 90
    clock.now += 30
    # The window is over earlier than it said: the next response sets the sum right.
    throttle.heard(tickets.pop(), told | {"x-ratelimit-remaining-requests": "100"})
    assert throttle.wait() == 0
    throttle.heard(tickets.pop(), {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"})
    assert throttle.wait() == 0.25
    clock.now += 0.25
    assert throttle.wait() == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("12.5", 12.5),
        ("soon", None),
        ("", None),
    ],
)
def test_durations_of_headers_are_read(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    assert retry_after({"Retry-After": "2.5"}) == 2.5
    assert retry_after({"Retry-After": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"Retry-After": "100000"}) == 600
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({}) is None
