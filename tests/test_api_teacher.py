"""A teacher behind an OpenAI-compatible endpoint, for real: a GGUF file in llama.cpp's own server on 127.0.0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llama import write_jsonl

from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.gguf import export
from stillroom.lessons.prompts.tickets import tickets
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.models.references import resolve_model
from stillroom.pipeline import run_pipeline
from stillroom.signals import Book

pytestmark = pytest.mark.timeout(1500)  # a whole recipe, on a machine that may be busy
TEACHER = resolve_model("embedded:tickets-teacher", Path("."))
KEY = "sk-planted-secret-0123456789"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A job folder and its teacher's server: the embedded teacher, as a GGUF file."""
    folder = tmp_path_factory.mktemp("served")
    export(TEACHER, folder / "teacher.gguf", "F16")
    write_jsonl(folder / "questions.jsonl", [{"prompt": ticket.message} for ticket in tickets(12, 5)])
    items = [{"prompt": ticket.message, "reference": ticket.reference} for ticket in tickets(2, 6)]
    write_jsonl(folder / "items.jsonl", items)
    with LlamaServer(folder / "teacher.gguf", n_ctx=256, parallel=2, threads=1, alias="tiny") as server:
        yield folder, server.url


def test_the_recipe_learns_from_what_the_endpoint_says_and_how_sure_it_was(served, tmp_path, monkeypatch):
    folder, url = served
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    recipe = build_recipe(
        {
            "name": "api",
            "teacher": {"api": "openai", "model": "tiny"},
            "student": {"prune": {"layers": 1, "keep": "first", "source": "embedded:tickets-teacher"}},
            "prompts": [{"file": "questions.jsonl"}],
            "splits": {"tune": 0.1},
            "teach": {"max_new_tokens": 96, "concurrency": 2, "signal": {"kind": "top-k"}},
            "filter": {"verify": "json"},
            "distil": {"steps": 2, "batch_size": 4},
            "evaluate": {"max_new_tokens": 96, "tasks": [{"file": "items.jsonl", "score": "json"}]},
        }
    )
    run = Run(tmp_path / "api", recipe, folder)
    run.save_recipe()
    run_pipeline(run, Progress())

    answers = [json.loads(line) for line in (run.path / "teach/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12
    assert all(answer["finish"] in ("stop", "length") for answer in answers)
    assert all(len(options) == 20 for answer in answers for options in answer["alternatives"])
    book = Book.open(run.path / "teach/signals")
    assert book.header.kind == "top-k"
    assert len(book) >= 9  # an answer whose tokens are not the tokenizer's own choice does not line up
    rows = json.loads((run.path / "evaluate/results.json").read_text())
    assert {"teacher", "student", "student-Q4_K_M"} <= {row["model"] for row in rows}
    secrets = [path for path in run.path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert secrets == []


def test_signals_from_an_endpoint_are_the_teachers_own_probabilities(served):
    import torch
    from transformers import AutoModelForCausalLM

    from stillroom.contracts.records import Request, Sampling
    from stillroom.lessons.teach.alternatives import aligned_signals
    from stillroom.lessons.teach.answered import answer_of
    from stillroom.lessons.teach.answers import lesson_messages
    from stillroom.models.api import ApiModel
    from stillroom.models.rendering import Renderer

    _, url = served
    renderer = Renderer.load(TEACHER)
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    asked = [[{"role": "user", "content": ticket.message}] for ticket in tickets(4, 7)]
    requests = [Request(f"{n:032x}", message) for n, message in enumerate(asked)]
    model = ApiModel(f"{url}/v1", "tiny", concurrency=2)
    sampling = Sampling(temperature=1.0, max_new_tokens=96, top_logprobs=20)
    compared = 0
    for request, reply in model.answer(requests, sampling):
        answer = answer_of(request, reply)
        messages = lesson_messages(answer.messages, reasoning=True)
        row = renderer.lesson(messages, complete=answer.finish == "stop")
        signals = aligned_signals(answer, row, renderer)
        if signals is None:
            continue
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor([row.ids])).logits[0]
        p = logits.softmax(-1)
        dense = signals.to_dense(p.shape[-1])
        for place, j in enumerate(number for number, selected in enumerate(row.mask) if selected):
            kept = dense[place] > 0
            torch.testing.assert_close(dense[place][kept], p[j - 1][kept], rtol=0.08, atol=2e-3)
            assert signals.tail_mass[place] == pytest.approx(1 - p[j - 1][kept].sum().item(), abs=0.02)
            compared += 1
    model.close()
    assert compared > 0


def test_of_several_special_tokens_listed_without_a_text_the_end_of_the_turn_is_the_likeliest():
    from stillroom.contracts.records import Reply, Request
    from stillroom.lessons.teach.alternatives import aligned_signals
    from stillroom.lessons.teach.answered import answer_of
    from stillroom.models.rendering import Renderer

    renderer = Renderer.load(TEACHER)
    asked = [{"role": "user", "content": "hello"}]
    row = renderer.lesson([*asked, {"role": "assistant", "content": "a"}], complete=True)
    (letter, end) = (token for token, selected in zip(row.ids, row.mask, strict=True) if selected)
    listed = [[("a", -0.1), ("b", -2.5)], [("", -1e-5), ("b", -13.0), ("", -15.0)]]
    answer = answer_of(Request("0" * 32, asked), Reply("a", "stop", alternatives=listed))
    dense = aligned_signals(answer, row, renderer).to_dense(1024)
    assert dense[0, letter] == pytest.approx(0.905, abs=0.01)
    assert dense[1, end] == pytest.approx(1.0, abs=1e-3)
