"""Serving: the OpenAI-compatible front over a stand-in backend that misbehaves on purpose, and over llama.cpp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from aiohttp import web
from tiny_llama import save_model, train_tokenizer

from stillroom.contracts.errors import ModelError, RunError, UserError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.gguf import export
from stillroom.serving import Backend, create_app, model_file, serve

LIMIT = 4096


@dataclass
class StandIn:
    """A small server with llama.cpp's routes; what the question says decides how it misbehaves."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    healthy: bool = True

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._answer),
                web.post("/v1/completions", self._answer),
                web.get("/health", self._health),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        if self.healthy:
            return web.json_response({"status": "ok"})
        error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        return web.json_response({"error": error}, status=503)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        question = body.decode()
        self.started.set()
        if "too long" in question:
            error = {"code": 400, "message": "exceeds the context", "type": "exceed_context_size_error"}
            return web.json_response({"error": error}, status=400)
        if "explode" in question:
            error = {"code": 500, "message": "inner trouble", "type": "server_error"}
            return web.json_response({"error": error}, status=500)
        if "cut off" in question and not json.loads(body).get("stream"):
            assert request.transport is not None
            request.transport.abort()
        try:
            if "hang" in question:
                await asyncio.sleep(60)
            if json.loads(body).get("stream"):
                return await self._stream(request, question)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        if request.path == "/v1/completions":
            choice = {"index": 0, "text": " time", "finish_reason": "stop", "logprobs": None}
            return web.json_response(_reply("text_completion", choice))
        message = {"role": "assistant", "content": "blue"}
        return web.json_response(
            _reply("chat.completion", {"index": 0, "message": message, "finish_reason": "stop"})
        )

    async def _stream(self, request: web.Request, question: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        words = ["b", "l", "ü", "e"] if "endless" not in question else ["on "] * 10_000
        for number, word in enumerate(words):
            if request.path == "/v1/completions":
                event = _reply("text_completion", {"index": 0, "text": word, "finish_reason": None})
            else:
                delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                event = _reply("chat.completion.chunk", delta)
            data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            if "cut off" in question and number == 2:
                await response.write(data[:40])
                await asyncio.sleep(0.05)
                assert request.transport is not None
                request.transport.abort()
                return response
            # In two pieces, torn inside a character: a front that decodes would stumble.
            torn = data.find("ü".encode()) + 1 or 9
            await response.write(data[:torn])
            await response.write(data[torn:])
            await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response


def _reply(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "object": kind, "created": 1, "model": "small", "choices": [choice], "odd_key": 1.50}


@contextlib.contextmanager
def running_backend(backend: StandIn) -> Iterator[StandIn]:
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(backend.app(), handler_cancellation=True)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        await site.start()
        backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield backend
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def running_front(app: Any) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def backend() -> Iterator[StandIn]:
    with running_backend(StandIn()) as backend:
        yield backend


@pytest.fixture
def front(backend: StandIn) -> Iterator[str]:
    app = create_app({"small": Backend(backend.url)}, api_keys=["sesame", "open"], max_request_bytes=LIMIT)
    with running_front(app) as url:
        yield url


def client(url: str, key: str = "sesame") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def curl(url: str, *arguments: str, data: bytes | None = None) -> tuple[int, Any]:
    command = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code}", *arguments, url]
    if data is not None:
        command[1:1] = ["--data-binary", "@-", "-H", "content-type: application/json"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=True)
    text, _, status = done.stdout.decode().rpartition("\n")
    return int(status), json.loads(text)


KEY = ("-H", "Authorization: Bearer sesame")


def question(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": content}], **more}


def test_a_chat_completion_arrives_whole_and_unchanged(front: str, backend: StandIn) -> None:
    sent = b'{ "model":"small",  "messages": [{"role":"user","content":"caf\\u00e9 \xc3\xa9"}], "temperature": 0.10}'
    status, reply = curl(f"{front}/v1/chat/completions", *KEY, data=sent)
    assert status == 200
    assert reply["choices"][0]["message"]["content"] == "blue"
    assert reply["odd_key"] == 1.5
    assert backend.bodies == [sent], "the body was re-encoded on its way"


def test_the_key_of_the_front_never_reaches_the_backend(front: str, backend: StandIn) -> None:
    client(front).chat.completions.create(**question("colour?"))
    assert "sesame" not in json.dumps(backend.headers)


def test_no_connection_to_the_backend_is_used_twice(front: str, backend: StandIn) -> None:
    """Under load llama.cpp's server closes those it has kept: the next request on one of them would be a 502."""
    api = client(front)
    for _ in range(2):
        api.chat.completions.create(**question("colour?"))
    assert [headers.get("Connection") for headers in backend.headers] == ["close", "close"]


def test_the_openai_client_reads_chat_answers_and_streams(front: str) -> None:
    api = client(front)
    assert api.chat.completions.create(**question("colour?")).choices[0].message.content == "blue"
    stream = api.chat.completions.create(**question("colour?", stream=True))
    assert [chunk.choices[0].delta.content for chunk in stream] == ["b", "l", "ü", "e"]


def test_the_openai_client_reads_plain_completions_and_their_streams(front: str) -> None:
    api = client(front)
    assert api.completions.create(model="small", prompt="Once upon a").choices[0].text == " time"
    stream = api.completions.create(model="small", prompt="Once upon a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "blüe"


def test_a_stream_arrives_while_it_is_written_not_at_its_end(front: str, backend: StandIn) -> None:
    stream = client(front).chat.completions.create(**question("endless", stream=True))
    assert next(iter(stream)).choices[0].delta.content == "on "
    assert not backend.hung_up.is_set()
    stream.close()
    assert backend.hung_up.wait(60)


def test_models_lists_the_names_that_are_served(front: str) -> None:
    api = client(front)
    assert [model.id for model in api.models.list()] == ["small"]
    assert api.models.retrieve("small").owned_by == "stillroom"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("large")


@pytest.mark.parametrize(
    "arguments", [(), ("-H", "Authorization: Bearer no"), ("-H", "Authorization: Basic sesame")]
)
def test_without_the_right_key_every_v1_route_answers_401(
    front: str, backend: StandIn, arguments: tuple[str, ...]
) -> None:
    for route in ("chat/completions", "models", "nowhere"):
        status, reply = curl(f"{front}/v1/{route}", *arguments)
        assert status == 401
        assert reply["error"]["code"] == "invalid_api_key"
    assert backend.bodies == []


def test_a_wrong_key_is_an_authentication_error_to_the_client(front: str) -> None:
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client(front, "guess").chat.completions.create(**question("colour?"))


def test_an_unknown_model_is_named_beside_those_that_are_served(front: str, backend: StandIn) -> None:
    with pytest.raises(openai.NotFoundError, match="`large` does not exist; served here: small") as caught:
        client(front).chat.completions.create(**{**question("colour?"), "model": "large"})
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert backend.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff{}",
        b"[" * 2000,
        b"1" * 4000,
        b"null",
        b'["model"]',
        b'{"messages": []}',
        b'{"model": 3}',
    ],
    ids=[
        "empty",
        "half",
        "not UTF-8",
        "deep",
        "long number",
        "null",
        "list",
        "no model",
        "model is a number",
    ],
)
def test_a_body_that_is_no_request_is_refused_in_openais_form(
    front: str, backend: StandIn, body: bytes
) -> None:
    status, reply = curl(f"{front}/v1/chat/completions", *KEY, data=body)
    assert status == 400
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert reply["error"]["type"] == "invalid_request_error"
    assert backend.bodies == []


@pytest.mark.parametrize("arguments", [(), ("-H", "Transfer-Encoding: chunked")], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_refused_however_it_is_sent(
    front: str, backend: StandIn, arguments: tuple[str, ...]
) -> None:
    fits = json.dumps(question("")).encode()
    fits = json.dumps(question("x" * (LIMIT - len(fits)))).encode()
    assert curl(f"{front}/v1/chat/completions", *KEY, *arguments, data=fits)[0] == 200
    for body in (fits + b" ", b"x" * (4 << 20)):
        status, reply = curl(f"{front}/v1/chat/completions", *KEY, *arguments, data=body)
        assert status == 413
        assert reply["error"]["code"] == "request_too_large"
    assert backend.bodies == [fits]


def test_an_unknown_address_or_method_is_answered_in_openais_form(front: str) -> None:
    assert curl(f"{front}/v1/embeddings", *KEY, data=b"{}")[0] == 404
    status, reply = curl(f"{front}/v1/chat/completions", *KEY)
    assert status == 405
    assert "GET /v1/chat/completions" in reply["error"]["message"]


def test_the_backends_own_errors_keep_their_meaning(front: str) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the context") as long:
        client(front).chat.completions.create(**question("too long"))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError, match="inner trouble") as broken:
        client(front).chat.completions.create(**question("explode", stream=True))
    assert broken.value.status_code == 502


def test_a_backend_that_dies_while_answering_is_a_bad_gateway(front: str) -> None:
    with pytest.raises(openai.InternalServerError, match="stopped while answering") as caught:
        client(front).chat.completions.create(**question("cut off"))
    assert caught.value.status_code == 502


def test_a_backend_that_dies_in_mid_stream_ends_it_with_an_error_event(front: str) -> None:
    stream = client(front).chat.completions.create(**question("cut off", stream=True))
    words: list[str | None] = []
    with pytest.raises(openai.APIError, match="stopped while answering"):
        words.extend(chunk.choices[0].delta.content for chunk in stream)
    assert words == ["b", "l"]


def test_without_a_backend_requests_and_health_answer_503(backend: StandIn) -> None:
    dead = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{dead.getsockname()[1]}"
    dead.close()
    behind = Backend(address)
    with running_front(create_app({"small": behind})) as front:
        for missing in (address, None):
            behind.url = missing
            assert curl(f"{front}/health")[0] == 503
            status, reply = curl(
                f"{front}/v1/chat/completions", data=json.dumps(question("colour?")).encode()
            )
            assert status == 503
            assert reply["error"]["type"] == "server_error"
            assert curl(f"{front}/v1/models")[0] == 200
        behind.url = backend.url
        assert client(front, "any").chat.completions.create(**question("colour?")).choices


def test_health_needs_no_key_and_follows_the_backend(front: str, backend: StandIn) -> None:
    assert curl(f"{front}/health") == (200, {"status": "ok"})
    backend.healthy = False
    status, reply = curl(f"{front}/health")
    assert (status, reply["error"]["message"]) == (503, "Loading model")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_before_the_answer_ends_the_backends_work(
    front: str, backend: StandIn, stream: bool
) -> None:
    body = json.dumps(question("hang", stream=stream)).encode()
    host, port = front.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert backend.started.wait(60)
        assert not backend.hung_up.is_set()
    assert backend.hung_up.wait(60)


def test_many_streams_at_once_do_not_wait_for_each_other(front: str, backend: StandIn) -> None:
    api = client(front)
    held = [api.chat.completions.create(**question("endless", stream=True)) for _ in range(20)]
    assert api.chat.completions.create(**question("colour?")).choices[0].message.content == "blue"
    for stream in held:
        stream.close()


def metric(url: str, line: str) -> float:
    """A figure of /metrics, by its name and labels; 0 where it is not there."""
    text = subprocess.run(
        ["curl", "-sS", f"{url}/metrics"], capture_output=True, text=True, check=True
    ).stdout
    found = [row for row in text.splitlines() if row.startswith(f"{line} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_a_monitor_sees_what_was_answered_refused_and_hung_up_on(front: str, backend: StandIn) -> None:
    api, chat = client(front), 'route="/v1/chat/completions"'
    for _ in range(3):
        api.chat.completions.create(**question("colour?"))
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(**question("too long"))
    with pytest.raises(openai.AuthenticationError):
        client(front, "wrong").chat.completions.create(**question("colour?"))
    for number in range(4):
        curl(f"{front}/v1/secret-{number}", *KEY)
    stream = api.chat.completions.create(**question("endless", stream=True))
    next(iter(stream))
    wait_until(lambda: metric(front, "stillroom_requests_running") == 1)
    stream.close()
    wait_until(lambda: metric(front, "stillroom_requests_running") == 0)
    assert metric(front, f'stillroom_requests_total{{{chat},status="200"}}') == 4
    assert metric(front, f'stillroom_requests_total{{{chat},status="400"}}') == 1
    assert metric(front, f'stillroom_requests_total{{{chat},status="401"}}') == 1
    assert metric(front, 'stillroom_requests_total{route="other",status="404"}') == 4
    assert metric(front, f"stillroom_request_seconds_count{{{chat}}}") == 6
    assert 0 < metric(front, f"stillroom_first_byte_seconds_sum{{{chat}}}") < 60


def test_several_models_are_answered_each_by_its_own(backend: StandIn) -> None:
    with running_backend(StandIn()) as frontier:
        behind = {
            "small": Backend(backend.url),
            "large": Backend(f"{frontier.url}/v1", model="vendor/large-1", key="secret", local=False),
        }
        with running_front(create_app(behind, api_keys=["sesame"])) as url:
            api = client(url)
            assert [model.id for model in api.models.list()] == ["small", "large"]
            for name in ("small", "large"):
                asked = {**question("colour?", seed=7), "model": name}
                assert api.chat.completions.create(**asked).choices[0].message.content == "blue"
            frontier.healthy = False
            assert curl(f"{url}/health")[0] == 200, "an API elsewhere says nothing of its health"
            backend.healthy = False
            assert curl(f"{url}/health")[0] == 503
    assert [json.loads(body)["model"] for body in backend.bodies] == ["small"]
    assert json.loads(frontier.bodies[0]) == {**question("colour?", seed=7), "model": "vendor/large-1"}
    assert frontier.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(behind)
    assert not any(name.lower() == "authorization" for name in backend.headers[0])


def test_one_request_too_many_is_told_to_come_back(backend: StandIn) -> None:
    app = create_app({"small": Backend(backend.url)}, most_requests=2)
    with running_front(app) as url:
        api = client(url)
        held = [api.chat.completions.create(**question("endless", stream=True)) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            api.chat.completions.create(**question("colour?"))
        assert caught.value.response.headers["retry-after"] == "1"
        assert [model.id for model in api.models.list()] == ["small"]
        held.pop().close()
        assert backend.hung_up.wait(60)
        wait_until(lambda: metric(url, "stillroom_requests_running") == 1)
        assert api.chat.completions.create(**question("colour?")).choices
        held.pop().close()


def test_any_of_several_keys_opens(front: str) -> None:
    assert client(front, "open").models.list().data
    with pytest.raises(openai.AuthenticationError):
        client(front, "sesame,open").models.list()


def test_an_empty_key_is_refused_rather_than_served() -> None:
    with pytest.raises(UserError, match="API key is empty"):
        create_app({"small": Backend("http://127.0.0.1:1")}, api_keys=[" "])


# A model file, served


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "hf", train_tokenizer())
    export(folder / "hf", folder / "tiny-F16.gguf", "F16")
    return folder / "tiny-F16.gguf"


class Served:
    """`serve` in a process of its own, as the command line runs it; `lines` is what it has said."""

    def __init__(self, path: Path, **settings: Any) -> None:
        program = (
            "import json, sys; from pathlib import Path; from stillroom.serving import serve\n"
            "serve(Path(sys.argv[1]), **json.loads(sys.argv[2]), announce=lambda line: print(line, flush=True))"
        )
        settings = {"port": 0, "parallel": 2, "context": 512, "threads": 1, **settings}
        command = [sys.executable, "-c", program, str(path), json.dumps(settings)]
        self.process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=lambda: self.lines.extend(self.process.stdout)),  # type: ignore[arg-type]
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr)),  # type: ignore[arg-type]
        ]
        for reader in self._readers:
            reader.start()

    def said(self, words: str) -> bool:
        assert self.process.poll() is None or any(words in line for line in self.lines), self.errors
        return any(words in line for line in self.lines)

    @property
    def url(self) -> str:
        wait_until(lambda: self.said("curl "))
        (line,) = (line for line in self.lines if line.startswith("serving "))
        return line.split(" at ")[1].strip().removesuffix("/v1")

    @property
    def child(self) -> int:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        (pid,) = listed.stdout.split()
        return int(pid)

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Send a signal, or None for no further one, and wait."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join()
        return code


@contextlib.contextmanager
def serving(path: Path, **settings: Any) -> Iterator[Served]:
    served = Served(path, **settings)
    try:
        yield served
    finally:
        served.end(signal.SIGKILL)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_served_file_answers_the_openai_client_and_curl(gguf: Path) -> None:
    with serving(gguf, api_keys=["sesame"], name="tiny model") as served:
        api = client(served.url)
        asked = {**question("hello"), "model": "tiny model", "max_tokens": 12, "temperature": 0}
        asked["extra_body"] = {"ignore_eos": True}  # a random model may end at once
        whole = api.chat.completions.create(**asked)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        assert whole.model == "tiny model"
        stream = api.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len(pieces) > 4
        assert metric(served.url, 'llamacpp:tokens_predicted_total{model="tiny model"}') == 24
        plain = api.completions.create(
            model="tiny model", prompt="def", max_tokens=5, temperature=0, logprobs=2
        )
        assert plain.choices[0].finish_reason == "length"
        assert [model.id for model in api.models.list()] == ["tiny model"]
        with pytest.raises(openai.BadRequestError) as caught:
            api.chat.completions.create(
                **{**asked, "messages": [{"role": "user", "content": "word " * 2000}]}
            )
        assert caught.value.code == "context_length_exceeded"
        for nothing in (
            "no list",
            [{"content": "no role"}],
            [{"role": "user", "content": [{"type": "text"}]}],
        ):
            with pytest.raises(openai.BadRequestError):
                api.chat.completions.create(**{**asked, "messages": nothing})
        (example,) = (line for line in served.lines if line.startswith("curl "))
        done = subprocess.run(
            ["sh", "-c", example.replace("curl ", "curl -sS ")],
            env={**os.environ, "API_KEY": "sesame"},
            capture_output=True,
            timeout=120,
        )
        assert json.loads(done.stdout)["object"] == "chat.completion"
        child = served.child
        assert served.end() == 0
        assert gone(child)
        assert served.errors == []
        assert not any("sesame" in line for line in served.lines)


def test_no_answer_is_longer_than_the_server_allows(gguf: Path) -> None:
    with serving(gguf, most_tokens=7) as served:
        api = client(served.url)
        asked = {**question("hello"), "model": "tiny-F16", "extra_body": {"ignore_eos": True}}
        answer = api.chat.completions.create(**asked)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7
        assert answer.choices[0].finish_reason == "length"
        for name in ("max_tokens", "max_completion_tokens"):
            for length in (8, -1):
                with pytest.raises(openai.BadRequestError, match="at most 7") as caught:
                    api.chat.completions.create(**asked, **{name: length})
                assert caught.value.param == name


def test_it_keeps_to_its_own_openapi_document(gguf: Path, tmp_path: Path) -> None:
    with serving(gguf, api_keys=["sesame"], most_tokens=4) as served:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"),
                *("-H", "Authorization: Bearer sesame", "--phases", "coverage,fuzzing"),
                *("--max-examples", "15", "--seed", "1", "--no-color"),
                # llama.cpp takes many a thing that it need not, and a conversation may be longer than its context.
                *("--exclude-checks", "negative_data_rejection,positive_data_acceptance"),
            ],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=tmp_path,  # it keeps a folder of its own there
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert served.errors == []
        assert not served.said("died")


def test_a_model_server_that_dies_is_started_again_and_the_reader_is_told(gguf: Path) -> None:
    with serving(gguf) as served:
        url, first = served.url, served.child
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: served.said("the model server died; starting it again"))
        assert curl(f"{url}/health")[0] == 503
        wait_until(lambda: served.said("the model answers again"))
        asked = {**question("hello", max_tokens=3), "model": "tiny-F16"}
        assert client(url).chat.completions.create(**asked).choices
        second = served.child
        assert second != first
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: served.said("starting it again in 3 s"))
        assert served.end() == 0, "a stop in the pause before a new start is a clean stop too"
        assert served.errors == []


@pytest.mark.parametrize(
    "whole_group",
    [
        pytest.param(False, id="the process alone"),
        pytest.param(True, id="Ctrl-C in a terminal"),
    ],
)
def test_stopping_lets_a_running_answer_end_and_leaves_nothing_behind(gguf: Path, whole_group: bool) -> None:
    with serving(gguf) as served:
        url, child = served.url, served.child
        asked = {**question("hello", max_tokens=200, stream=True), "model": "tiny-F16"}
        stream = iter(client(url).chat.completions.create(**asked, extra_body={"ignore_eos": True}))
        next(stream)
        if whole_group:
            os.killpg(served.process.pid, signal.SIGINT)
        else:
            served.process.send_signal(signal.SIGINT)
        finish = [chunk.choices[0].finish_reason for chunk in stream]
        assert finish[-1] == "length"
        assert served.end(None) == 0
        assert gone(child)
        assert not any("died" in line for line in served.lines)
        assert served.errors == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def test_when_serving_is_killed_its_model_server_ends_too(gguf: Path) -> None:
    with serving(gguf) as served:
        assert served.url
        child = served.child
        assert served.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: gone(child))


def test_a_taken_port_is_named_before_the_model_is_loaded(gguf: Path) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use by another program"):
            serve(gguf, port=port, announce=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "203.0.113.7"}, "is not an address of this machine"),
        ({"host": "no such host"}, "is not an address of this machine"),
        ({"port": 70_000}, "there is no such port"),
        ({"api_keys": [""]}, "the API key is empty"),
    ],
)
def test_an_address_or_key_that_cannot_be_used_is_a_user_error(
    gguf: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        serve(gguf, **{"port": 0, **settings}, announce=print)


def test_a_file_that_llama_cpp_cannot_load_is_a_model_error_and_frees_the_port(
    gguf: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(gguf.read_bytes()[:5000])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threads = threading.active_count()
    with pytest.raises(ModelError, match="cannot load"):
        serve(torn, port=port, announce=print)
    socket.create_server(("127.0.0.1", port)).close()
    assert threading.active_count() <= threads + 1  # asyncio may keep one idle worker
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def make_run(runs: Path, **more: Any) -> Run:
    tree = {
        "name": "tickets",
        "teacher": {"model": "big"},
        "student": {"model": "small"},
        "prompts": [{"file": "tickets.jsonl"}],
    }
    run = Run(runs / "tickets", build_recipe({**tree, **more}), runs)
    run.save_recipe()
    return run


def test_a_run_stands_for_the_first_file_its_recipe_quantises(tmp_path: Path) -> None:
    for number, (kinds, first) in enumerate(
        [(["Q8_0", "Q4_K_M"], "Q8_0"), (["Q4_K_M"], "Q4_K_M"), ([], "F16")]
    ):
        run = make_run(tmp_path / str(number), quantise=kinds)
        with pytest.raises(RunError, match="no finished quantise stage"):
            model_file(run.path)
        Manifest("quantise", "mark", {}, {}).write(run.folder("quantise"))
        with pytest.raises(RunError, match=rf"student-{first}\.gguf does not exist"):
            model_file(run.path)
        for kind in ("F16", "Q4_K_M", "Q8_0"):
            (run.folder("quantise") / f"student-{kind}.gguf").touch()
        assert model_file(run.path) == run.path / "quantise" / f"student-{first}.gguf"


def test_what_is_no_model_and_no_run_says_so(tmp_path: Path, gguf: Path) -> None:
    assert model_file(gguf) == gguf
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is not a GGUF file"):
        model_file(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.gguf"):
        with pytest.raises(RunError, match="is not a run folder"):
            model_file(path)


def test_a_run_is_served_under_its_own_name_and_context(gguf: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, quantise=["F16"], export={"context": 128})
    Manifest("quantise", "mark", {}, {}).write(run.folder("quantise"))
    (run.folder("quantise") / "student-F16.gguf").symlink_to(gguf)
    with serving(run.path, context=None) as served:
        asked = {**question("word " * 900), "model": "tickets"}
        with pytest.raises(openai.BadRequestError, match="context"):
            client(served.url).chat.completions.create(**asked)
