"""What may have been paid for is kept, whatever ends the asking; what cannot help is not paid for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_models_api import KEY, Server, echo

from stillroom.contracts.errors import DataError, RecipeError, ServiceFault, TeacherError
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Request, Sampling, content_key
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teach_settings import check_ways, teach_settings
from stillroom.lessons.teach.teaching import Panel, Taught, conclude, teach
from stillroom.models.api import ApiModel
from stillroom.models.chat_completions import ChatReply, ChatRequest
from stillroom.models.endpoint import Endpoint
from stillroom.models.teachers import Price

SAMPLING = Sampling(max_new_tokens=100)
PRICE = Price(models=["*"], input=1.0, output=10.0)


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        yield Request(content_key(number), [{"role": "user", "content": f"q{number}"}])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def ask(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Taught]]:
    """Asks for requests and keeps their answers in answers.jsonl."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    models: list[ApiModel] = []

    def ask(asked: Iterator[Request], **settings: Any) -> Taught:
        settings = {"concurrency": 8, "timeout": 30, "attempts": 2, "first_wait": 0.01, **settings}
        models.append(ApiModel(server.url, "large", **settings))
        with AnswersFile(tmp_path / "answers.jsonl", writable=True) as file:
            return teach(asked, models[-1], SAMPLING, file, Bill(None, SAMPLING), Panel(Meter()))

    yield ask
    for model in models:
        model.close()


def kept(folder: Path) -> list[str]:
    """Questions with a usable answer."""
    lines = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return sorted(line["messages"][0]["content"] for line in lines if line["finish"] == "stop")


def test_what_is_in_flight_is_kept_where_the_questions_cannot_be_read_on(
    server: Server, ask: Callable[..., Taught], tmp_path: Path
) -> None:
    async def slow(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await echo(request, body, attempt)

    def broken() -> Iterator[Request]:
        yield from requests(32)  # as many as are taken ahead
        raise DataError("line 33 is not JSON")

    server.handler = slow
    with pytest.raises(DataError, match="line 33"):
        ask(broken())
    asked = sorted(body["messages"][-1]["content"] for body in server.bodies)
    assert len(asked) >= 8
    assert kept(tmp_path) == asked


def test_what_is_in_flight_is_kept_where_the_server_keeps_failing(
    server: Server, ask: Callable[..., Taught], tmp_path: Path
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if body["messages"][-1]["content"] in ("q0", "q1"):
            await asyncio.sleep(1.0)
            return await echo(request, body, attempt)
        return web.Response(status=500, text="boom")

    server.handler = handler
    with pytest.raises(ServiceFault, match="keeps failing"):
        ask(requests(1000))
    assert kept(tmp_path) == ["q0", "q1"]


def hear_interrupts() -> None:
    """A shell that runs the tests in the background has its children ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_waits_for_what_is_in_flight_and_keeps_it(server: Server, tmp_path: Path) -> None:
    full = threading.Event()

    async def slow(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if server.active == 8:
            full.set()
        await asyncio.sleep(2.0)
        return await echo(request, body, attempt)

    server.handler = slow
    (tmp_path / "q.txt").write_text("".join(f"q{number}\n" for number in range(500)))
    command = [sys.executable, "-m", "stillroom", "teach", str(tmp_path / "q.txt"), "--model", "large"]
    command += ["--api", server.url, "--out", str(tmp_path / "answers.jsonl"), "--set", "teach.concurrency=8"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    assert full.wait(200)
    process.send_signal(signal.SIGINT)
    process.wait(200)
    assert process.returncode not in (0, -signal.SIGINT)
    asked = sorted({body["messages"][-1]["content"] for body in server.bodies})
    assert kept(tmp_path) == asked


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Request, Sampling, content_key
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teaching import Panel, teach
from stillroom.models.api import ApiModel

signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt(answer):
    if answer.messages[0]["content"] == "q0":
        os.kill(os.getpid(), signal.SIGINT)

asked = (Request(content_key(n), [{"role": "user", "content": f"q{n}"}]) for n in range(500))
model = ApiModel(sys.argv[1], "large", concurrency=8)
try:
    with AnswersFile(Path(sys.argv[2]), writable=True) as file:
        teach(asked, model, Sampling(), file, Bill(None, Sampling()), Panel(Meter()), interrupt)
except KeyboardInterrupt:
    print("interrupted")
model.close()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_ctrl_c_while_answers_are_written_loses_none(server: Server, tmp_path: Path) -> None:
    async def slow(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if body["messages"][-1]["content"] != "q0":
            await asyncio.sleep(1.0)
        return await echo(request, body, attempt)

    server.handler = slow
    command = [sys.executable, "-c", INTERRUPTED, server.url, str(tmp_path / "answers.jsonl")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    assert told.stdout == "interrupted\n"
    asked = sorted({body["messages"][-1]["content"] for body in server.bodies})
    assert 8 <= len(asked) < 100
    assert kept(tmp_path) == asked


def test_questions_that_the_api_turns_down_do_not_end_the_asking(
    server: Server, ask: Callable[..., Taught], tmp_path: Path
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        if 10 <= int(body["messages"][-1]["content"][1:]) < 90:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return await echo(request, body, attempt)

    server.handler = handler
    taught = ask(requests(100))
    assert (taught.counts["stop"], taught.counts["turned down"]) == (20, 80)
    # Asked alone they are no sign of a broken endpoint either: it has answered the others.
    taught = ask(requests(100))
    assert (taught.counts["stop"], taught.counts["turned down"]) == (0, 80)
    conclude(taught, Bill(None, SAMPLING))


def test_an_endpoint_that_turns_every_question_down_is_not_asked_ten_thousand_times(
    server: Server, ask: Callable[..., Taught]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such response_format"}}, status=400)

    server.handler = handler
    with pytest.raises(ServiceFault, match="turns every question down") as caught:
        ask(requests(10_000))
    assert "no such response_format" in str(caught.value)
    assert len(server.bodies) < 200


def test_an_answer_that_never_ends_is_waited_for_five_times_at_most(
    server: Server, ask: Callable[..., Taught]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        assert request.transport is not None
        if attempt % 2:
            await asyncio.sleep(30)
        request.transport.close()
        return response

    server.handler = handler
    with pytest.raises(ServiceFault, match="none of the questions"):
        conclude(ask(requests(1), attempts=50, timeout=0.3), Bill(None, SAMPLING))
    assert server.attempts["q0"] == 5


@pytest.mark.parametrize("before", range(250, 310, 7))
def test_no_part_of_the_key_is_shown_wherever_a_message_is_cut(
    server: Server, ask: Callable[..., Taught], tmp_path: Path, before: int
) -> None:
    text = "x" * before + KEY
    assert KEY[:6] not in Endpoint("http://x/v1", "K", KEY).clean(text)

    async def handler(request: web.Request, body: dict[str, Any], attempt: int) -> web.StreamResponse:
        error = {"error": {"message": text}}
        return web.json_response(error, status=200 if body["messages"][-1]["content"] == "q0" else 400)

    server.handler = handler
    ask(requests(2))
    assert KEY[:6] not in (tmp_path / "answers.jsonl").read_text()


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(TeacherError, match="is no API key") as caught:
        Endpoint.of("http://127.0.0.1:1/v1", "OPENAI_API_KEY")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("name", ["n", "stream", "model", "messages", "max_tokens", "max_completion_tokens"])
def test_parameters_that_would_waste_answers_are_refused(name: str) -> None:
    teacher, settings = teach_settings(
        {"model": "large", "api": "http://127.0.0.1:1/v1"}, {"parameters": {name: 4}}
    )
    with pytest.raises(RecipeError, match=rf"teach.parameters.{name}"):
        check_ways(teacher, settings)
    check_ways(teacher, settings.model_copy(update={"parameters": {name: None}}))


def test_tools_and_schemas_are_part_of_what_a_request_may_cost() -> None:
    [plain] = requests(1)
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 4000}}]
    armed = ChatRequest(plain.key, plain.messages, parameters={"tools": tools})
    bill = Bill(PRICE, SAMPLING)
    assert bill.most(armed) - bill.most(plain) == pytest.approx(1000e-6, rel=0.05)
    assert Bill(PRICE, SAMPLING, parameters={"tools": tools}).most(plain) == bill.most(armed)
    uncounted = ChatReply("x", "stop")
    assert (bill.settle(armed, uncounted) or 0) > 1000e-6


def test_what_failed_is_an_error_where_nothing_else_came_and_what_was_turned_down_beside_answers_is_none() -> (
    None
):
    down = Taught(Counter({"failed": 2, "turned down": 2}), proved=True)
    conclude(down, Bill(None, SAMPLING))
    down.counts["failed"] += 1
    with pytest.raises(ServiceFault):
        conclude(down, Bill(None, SAMPLING))
    with pytest.raises(ServiceFault):
        conclude(Taught(Counter({"failed": 2, "turned down": 2})), Bill(None, SAMPLING))
