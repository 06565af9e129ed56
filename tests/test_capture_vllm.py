"""A teacher behind vLLM reads given texts: its `prompt_logprobs` become the book's signals, or the server is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama, train_tokenizer
from torch import Tensor

from stillroom.contracts.errors import ModelError, RecipeError, ServiceFault, TeacherError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.records import Answer
from stillroom.lessons.teach.capture import capture_book
from stillroom.models.endpoint import Endpoint
from stillroom.models.rendering import Rendered, Renderer
from stillroom.models.vllm_scoring import VllmScorer
from stillroom.signals import Book

KEY = "sk-very-secret-1234567890"
TEXTS = ["Wrap the text so that every line fits.", "def wrap(text, width=70): return lines", "the", "a b c d"]


class Vllm(ThreadingHTTPServer):
    """/v1/completions as vLLM answers it, from a model's own logits; `faults` are statuses sent before the first answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = train_tokenizer(320)
        self.model = tiny_llama(self.tokenizer, seed=3)
        self.most, self.context = 20, 200
        self.faults: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.extension = True
        self.shift = 0
        self.guard = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that has had enough hangs up."""

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ids, wanted = body["prompt"], body.get("prompt_logprobs")
        if self.faults:
            return self.faults.pop(0), {"error": {"message": "the engine is busy"}}
        if wanted > self.most:
            told = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {self.most}"
            return 400, {"error": {"message": told, "type": "BadRequestError", "code": 400}}
        if len(ids) + body["max_tokens"] > self.context:
            return 400, {
                "error": {"message": f"This model's maximum context length is {self.context} tokens."}
            }
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if self.extension:
            choice["prompt_logprobs"] = [None, *self.listed(ids, wanted)]
        return 200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": {}}

    def listed(self, ids: list[int], wanted: int) -> list[dict[str, Any]]:
        with torch.no_grad():
            logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found = []
        for place, token in enumerate(ids[1:]):
            ranked = logprobs[place].argsort(descending=True).tolist()
            shown = dict.fromkeys([token, *ranked[:wanted]])  # its own token first, then the k best
            found.append(
                {
                    str(one): {
                        "logprob": float(logprobs[place, one]),
                        "rank": ranked.index(one) + 1,
                        "decoded_token": self.tokenizer.decode([(one + self.shift) % len(self.tokenizer)]),
                    }
                    for one in shown
                }
            )
        return found


class Handler(BaseHTTPRequestHandler):
    server: Vllm
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            status, told = self.server.answer(body)
        if self.path != "/v1/completions":
            status, told = 404, {"error": {"message": "Not Found"}}
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def machine() -> Iterator[Vllm]:
    made = Vllm()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


@pytest.fixture
def server(machine: Vllm) -> Vllm:
    machine.bodies.clear()
    machine.keys.clear()
    machine.faults, machine.extension, machine.shift = [], True, 0
    return machine


def scorer(server: Vllm, **settings: Any) -> VllmScorer:
    endpoint = Endpoint(server.url, "TEST_KEY", KEY)
    return VllmScorer(endpoint, "teacher", Renderer(server.tokenizer), first_wait=0.01, **settings)


def rows(server: Vllm) -> list[Rendered]:
    renderer = Renderer(server.tokenizer)
    asked = [{"role": "user", "content": "wrap"}]
    return [renderer.lesson([*asked, {"role": "assistant", "content": text}]) for text in TEXTS]


def logits(server: Vllm, row: Rendered) -> Tensor:
    with torch.no_grad():
        whole = server.model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    return whole[:-1][torch.tensor(row.mask[1:])]


def test_what_it_lists_are_the_models_best_tokens_in_the_order_of_the_rows(server: Vllm) -> None:
    wanted = rows(server) * 3
    found = list(scorer(server, top=7, concurrency=3).top_logprobs(wanted))
    assert len(found) == len(wanted)
    for row, (ids, logprobs) in zip(wanted, found, strict=True):
        best, where = logits(server, row).topk(7, dim=-1)
        torch.testing.assert_close(logprobs, best, atol=1e-6, rtol=0)
        assert ids.equal(where)


def test_a_request_is_what_vllm_expects_and_carries_the_key(server: Vllm) -> None:
    row = rows(server)[0]
    list(scorer(server, top=5).top_logprobs([row]))
    assert server.bodies == [
        {"model": "teacher", "prompt": row.ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 5}
    ]
    assert server.keys == [f"Bearer {KEY}"]


def test_a_busy_server_is_asked_again(server: Vllm) -> None:
    server.faults = [503, 429, 500]
    assert len(list(scorer(server).top_logprobs(rows(server)))) == len(TEXTS)


def test_a_server_that_stays_busy_is_a_fault(server: Vllm) -> None:
    server.faults = [503] * 99
    with pytest.raises(ServiceFault, match=r"keeps failing[\s\S]*engine is busy"):
        list(scorer(server).top_logprobs(rows(server)[:1]))


def test_more_tokens_than_the_server_allows_are_refused_with_its_option(server: Vllm) -> None:
    with pytest.raises(TeacherError, match=r"max allowed: 20[\s\S]*--max-logprobs 30"):
        list(scorer(server, top=30).top_logprobs(rows(server)))


def test_a_text_beyond_the_servers_context_is_refused(server: Vllm) -> None:
    long = Renderer(server.tokenizer).text("wrap " * 300)
    with pytest.raises(TeacherError, match=r"maximum context length[\s\S]*distil.max_length"):
        list(scorer(server).top_logprobs([long]))


def test_a_server_without_the_extension_is_refused(server: Vllm) -> None:
    server.extension = False
    with pytest.raises(TeacherError, match=r"no log-probabilities of prompts[\s\S]*vLLM"):
        list(scorer(server).top_logprobs(rows(server)))


def test_a_server_whose_ids_mean_other_texts_is_refused(server: Vllm) -> None:
    server.shift = 1
    with pytest.raises(ModelError, match="do not mean the same by a token's id"):
        list(scorer(server).top_logprobs(rows(server)))


def recipe(server: Vllm, **distil: Any) -> Any:
    return build_recipe(
        {
            "name": "read",
            "teacher": {"model": "teacher", "api": server.url},
            "student": {"model": "any"},
            "prompts": [{"file": "any.jsonl"}],
            "teach": {"signal": {"kind": "top-k", "source": "prompt_logprobs"}},
            "distil": distil,
        },
        "test",
    )


def answers() -> list[Answer]:
    asked = {"role": "user", "content": "wrap"}
    return [
        Answer(str(n), "", 0, [asked, {"role": "assistant", "content": text}], "stop")
        for n, text in enumerate(TEXTS)
    ]


def capture(folder: Path, server: Vllm, **distil: Any) -> dict[str, Any]:
    renderer = Renderer(server.tokenizer)
    return capture_book(folder, recipe(server, **distil), answers(), None, renderer, Progress())


def test_a_book_holds_what_vllm_listed_and_the_rest_as_a_bucket(server: Vllm, tmp_path: Path) -> None:
    counts = capture(tmp_path / "book", server)
    book = Book.open(tmp_path / "book", temperature=1.0)
    assert counts["rows"] == len(book) == len(TEXTS)
    assert counts["bytes a token"] < 36 + 20  # the rows' own tokens come on top
    for row in rows(server):
        targets = book.row(book.key(row.ids, row.mask)).targets
        assert targets.bucket
        p = logits(server, row).exp()
        dense = torch.zeros_like(p)
        dense[targets.positions, targets.ids] = targets.weights.double()
        kept = dense > 0
        assert (dense - p)[kept].abs().max() < 0.05  # a byte a weight
        torch.testing.assert_close(targets.tail_mass.double(), (p * ~kept).sum(-1), atol=2e-3, rtol=0)


def test_a_killed_capture_asks_for_what_the_book_lacks_only(server: Vllm, tmp_path: Path) -> None:
    capture(tmp_path / "book", server)
    assert len(server.bodies) == len(TEXTS)
    capture(tmp_path / "book", server)
    assert len(server.bodies) == len(TEXTS)


def test_another_temperature_is_refused_before_the_server_is_asked(server: Vllm, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="temperature 1"):
        capture(tmp_path / "book", server, temperature=2.0)
    assert not server.bodies
