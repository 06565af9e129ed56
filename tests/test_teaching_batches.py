"""A batch endpoint: handed in, killed, found again, collected; nothing is handed in twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stillroom.contracts.errors import TeacherError
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Request, Sampling, content_key
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teaching import Panel, teach
from stillroom.models.batch_journal import BatchJournal
from stillroom.models.batches import BatchModel
from stillroom.models.endpoint import base_url


class BatchServer:
    """Files and batches; a batch is over at its third look. `trouble` spoils lines or whole batches."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: Counter[str] = Counter()
        self.calls = 0
        self.answered: Counter[str] = Counter()
        self.expires = False
        self.silent = 0
        """So many times a batch is made and the call answered with an error."""
        self.room = 1000
        """Batches under way at a time; others fail."""
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self.ready.wait(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application(middlewares=[self._faults])
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files/{id}/content", self.content)
        app.router.add_post("/v1/batches", self.create)
        app.router.add_get("/v1/batches", self.list)
        app.router.add_get("/v1/batches/{id}", self.look)
        self.runner = runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.loop.run_until_complete(runner.setup())
        self.loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self.ready.set()
        self.loop.run_forever()

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls += 1
        if self.calls % 5 == 2:
            return web.Response(status=503, text="busy")
        return await handler(request)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read().decode()  # type: ignore[union-attr]
        return web.json_response({"id": name})

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        batch = {"id": f"batch-{len(self.batches)}", "status": "validating", **body}
        if sum(other["status"] == "validating" for other in self.batches.values()) >= self.room:
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            batch |= {"status": "failed", "errors": {"data": [error]}}
        self.batches[batch["id"]] = batch
        if self.silent:
            self.silent -= 1
            return web.Response(status=502, text="bad gateway")
        return web.json_response(batch)

    async def list(self, request: web.Request) -> web.Response:
        """Two batches a page, the latest first."""
        latest = list(reversed(self.batches.values()))
        names = [batch["id"] for batch in latest]
        start = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        return web.json_response({"data": latest[start : start + 2], "has_more": start + 2 < len(latest)})

    async def look(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        self.looks[batch["id"]] += 1
        if self.looks[batch["id"]] >= 3 and batch["status"] == "validating":
            self.finish(batch)
        return web.json_response(batch)

    def finish(self, batch: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        good, bad = [], []
        for number, line in enumerate(lines):
            question = line["body"]["messages"][-1]["content"]
            if self.expires and number % 2:
                continue
            self.answered[line["custom_id"]] += 1
            if question == "q3":
                response = {"status_code": 400, "body": {"error": {"message": "too long"}}}
                bad.append({"custom_id": line["custom_id"], "response": response, "error": None})
                continue
            choice = {"message": {"content": f"echo {question}"}, "finish_reason": "stop"}
            body = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
            good.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
        good.append(good[0])  # an id twice
        self.files[f"out-{batch['id']}"] = "\n".join(map(json.dumps, reversed(good)))
        self.files[f"err-{batch['id']}"] = "\n".join(map(json.dumps, bad))
        batch |= {
            "status": "expired" if self.expires else "completed",
            "output_file_id": f"out-{batch['id']}",
        }
        if bad:
            batch["error_file_id"] = f"err-{batch['id']}"

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(text=self.files[request.match_info["id"]])


@pytest.fixture
def server() -> Iterator[BatchServer]:
    server = BatchServer()
    yield server
    asyncio.run_coroutine_threadsafe(server.runner.cleanup(), server.loop).result(60)
    server.loop.call_soon_threadsafe(server.loop.stop)


SAMPLING = Sampling(max_new_tokens=9)


def requests(count: int) -> list[Request]:
    return [Request(content_key(n), [{"role": "user", "content": f"q{n}"}], 0, f"p{n}") for n in range(count)]


def ask(server: BatchServer, folder: Path, count: int) -> dict[str, str]:
    """Question number to answer, after asking for what has none."""
    model = BatchModel(server.url, "large", folder / "batches", poll=0.01, per_batch=10, first_wait=0.01)
    with AnswersFile(folder / "answers.jsonl", writable=True) as file:
        teach(requests(count), model, SAMPLING, file, Bill(None, SAMPLING), Panel(Meter()))
        model.close()
        answers = [file.read(request.key) for request in requests(count)]
    return {
        answer.prompt: answer.messages[-1]["content"] or answer.error or "" for answer in answers if answer
    }


def test_every_question_is_handed_in_once_and_collected(server: BatchServer, tmp_path: Path) -> None:
    answers = ask(server, tmp_path, 25)
    assert answers == {f"p{n}": "HTTP 400: too long" if n == 3 else f"echo q{n}" for n in range(25)}
    assert len(server.batches) == 3
    (line,) = [line for line in server.files["file-0"].splitlines() if '"q3"' in line]
    assert json.loads(line)["body"]["max_tokens"] == 9
    ask(server, tmp_path, 26)
    assert {key: times for key, times in server.answered.items() if times > 1} == {content_key(3): 2}
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["journal.jsonl"]


def test_batches_of_a_process_that_died_are_found_again(server: BatchServer, tmp_path: Path) -> None:
    model = BatchModel(server.url, "large", tmp_path / "batches", poll=0.01, per_batch=10, first_wait=0.01)
    stream = model.answer_together(requests(20), SAMPLING)
    with AnswersFile(tmp_path / "answers.jsonl", writable=True) as file:
        # Handed in twice ten; the process dies with the first answers in its hands.
        next(stream)
        assert len(file) == 0
    journal = tmp_path / "batches/journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    # Nor was it noted that the last batch had been handed in.
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert len(server.batches) == 2
    answers = ask(server, tmp_path, 20)
    assert len(answers) == 20
    assert len(server.batches) == 2
    assert max(server.answered.values()) == 1
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 20


def test_a_batch_that_was_made_although_the_call_failed_is_not_made_again(
    server: BatchServer, tmp_path: Path
) -> None:
    server.silent = 2
    assert len(ask(server, tmp_path, 45)) == 45
    assert len(server.batches) == 5
    assert max(server.answered.values()) == 1


def test_a_batch_is_found_again_behind_many_later_ones(server: BatchServer, tmp_path: Path) -> None:
    model = BatchModel(server.url, "large", tmp_path / "batches", poll=0.01, per_batch=10, first_wait=0.01)
    next(model.answer_together(requests(10), SAMPLING))
    model.close()
    lines = (tmp_path / "batches/journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "batches/journal.jsonl").write_text(lines[0])
    [first] = server.batches
    server.batches |= {f"later-{number}": {"id": f"later-{number}"} for number in range(7)}
    assert len(ask(server, tmp_path, 10)) == 10
    assert [name for name in server.batches if name.startswith("batch")] == [first]


def test_a_batch_that_was_not_handed_in_is_never_asked_with_other_settings(
    server: BatchServer, tmp_path: Path
) -> None:
    journal = BatchJournal(tmp_path / "batches", base_url(server.url))
    journal.keep(requests(10))  # written down, and killed before it was handed in
    journal.close()
    model = BatchModel(server.url, "large", tmp_path / "batches", poll=0.01, first_wait=0.01)
    other = [Request(content_key("hot", n), request.messages) for n, request in enumerate(requests(4))]
    answered = {request.key for request, _ in model.answer(other, Sampling(temperature=2.0))}
    model.close()
    assert answered == {request.key for request in other} == set(server.answered)
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["journal.jsonl"]


def test_a_batch_that_is_one_too_many_is_handed_in_again_when_another_is_over(
    server: BatchServer, tmp_path: Path
) -> None:
    server.room = 2
    answers = ask(server, tmp_path, 65)
    assert answers == {f"p{n}": "HTTP 400: too long" if n == 3 else f"echo q{n}" for n in range(65)}
    assert max(server.answered.values()) == 1
    # One that is too large by itself is a failure with its reason.
    server.room = 0
    assert ask(server, tmp_path / "other", 3)["p1"] == "the batch failed: Enqueued token limit reached"


def test_batches_of_another_endpoint_are_left_for_it(server: BatchServer, tmp_path: Path) -> None:
    elsewhere = BatchServer()
    model = BatchModel(elsewhere.url, "large", tmp_path / "batches", poll=0.01, first_wait=0.01)
    next(model.answer_together(requests(3), SAMPLING))
    model.close()
    other = [Request(content_key("other", n), request.messages) for n, request in enumerate(requests(3))]
    model = BatchModel(server.url, "large", tmp_path / "batches", poll=0.01, first_wait=0.01)
    assert len(list(model.answer(other, SAMPLING))) == 3
    model.close()
    assert len(ask(elsewhere, tmp_path, 3)) == 3
    assert len(elsewhere.batches) == 1
    asyncio.run_coroutine_threadsafe(elsewhere.runner.cleanup(), elsewhere.loop).result(60)
    elsewhere.loop.call_soon_threadsafe(elsewhere.loop.stop)


def test_what_an_expired_batch_left_is_a_failure_and_is_handed_in_again(
    server: BatchServer, tmp_path: Path
) -> None:
    server.expires = True
    assert ask(server, tmp_path, 3)["p1"] == "the batch expired: without this answer"
    server.expires = False
    assert ask(server, tmp_path, 3) == {f"p{n}": f"echo q{n}" for n in range(3)}
    assert server.answered == {content_key(n): 1 for n in range(3)}


def test_an_api_without_a_batch_endpoint_says_so(server: BatchServer, tmp_path: Path) -> None:
    server.url = server.url.removesuffix("/v1") + "/v2"
    with pytest.raises(TeacherError, match="has no batch endpoint"):
        ask(server, tmp_path, 3)
