"""A teacher behind an OpenAI-compatible endpoint, for real: a GGUF file in llama.cpp's own server on 127.0.0.1."""

from __future__ import annotations

import json

import pytest
from tiny_llama import save_tiny, write_jsonl

from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.gguf import export
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.pipeline import run_pipeline
from stillroom.signals import Book

KEY = "sk-planted-secret-0123456789"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A job folder and its teacher's server."""
    folder = tmp_path_factory.mktemp("served")
    save_tiny(folder / "teacher", seed=1, hidden=256, layers=2)
    export(folder / "teacher", folder / "teacher.gguf", "F16")
    questions = [{"prompt": f"the red a costs {n} pounds"} for n in range(24)]
    write_jsonl(folder / "questions.jsonl", questions)
    write_jsonl(
        folder / "items.jsonl",
        [{"prompt": "the b?", "reference": "1"}, {"prompt": "the a?", "reference": "2"}],
    )
    with LlamaServer(folder / "teacher.gguf", n_ctx=128, parallel=2, alias="tiny") as server:
        yield folder, server.url


def test_the_recipe_learns_from_what_the_endpoint_says_and_how_sure_it_was(served, tmp_path, monkeypatch):
    folder, url = served
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    recipe = build_recipe(
        {
            "name": "api",
            "teacher": {"api": "openai", "model": "tiny"},
            "student": {"prune": {"layers": 1, "keep": "first", "source": "teacher"}},
            "prompts": [{"file": "questions.jsonl"}],
            "splits": {"tune": 0.1},
            "teach": {"max_new_tokens": 10, "concurrency": 2, "signal": {"kind": "top-k"}},
            "filter": {"truncated": "keep"},
            "distil": {"steps": 4, "batch_size": 8},
            "evaluate": {"max_new_tokens": 8, "tasks": [{"file": "items.jsonl", "score": "exact"}]},
        }
    )
    run = Run(tmp_path / "api", recipe, folder)
    run.save_recipe()
    run_pipeline(run, Progress())

    answers = [json.loads(line) for line in (run.path / "teach/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 24
    assert all(answer["finish"] in ("stop", "length") for answer in answers)
    assert all(len(options) == 20 for answer in answers for options in answer["alternatives"])
    book = Book.open(run.path / "teach/signals")
    assert book.header.kind == "top-k"
    # A random teacher writes half characters, which an API cannot name; most answers must still line up.
    assert len(book) >= 1
    rows = json.loads((run.path / "evaluate/results.json").read_text())
    assert {"teacher", "student", "student-Q4_K_M"} <= {row["model"] for row in rows}
    secrets = [path for path in run.path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert secrets == []


def test_signals_from_an_endpoint_are_the_teachers_own_probabilities(served, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    from stillroom.contracts.records import Request, Sampling
    from stillroom.lessons.answered import answer_of
    from stillroom.lessons.capture import _aligned
    from stillroom.models.api import ApiModel
    from stillroom.models.rendering import Renderer

    folder, url = served
    renderer = Renderer.load(folder / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    requests = [Request(f"{n:032x}", [{"role": "user", "content": f"the blue b {n}"}]) for n in range(24)]
    model = ApiModel(f"{url}/v1", "tiny", concurrency=2)
    sampling = Sampling(temperature=1.0, max_new_tokens=6, top_logprobs=20)
    compared = 0
    for request, reply in model.answer(requests, sampling):
        answer = answer_of(request, reply)
        row = renderer.lesson(answer.messages, complete=answer.finish == "stop")
        signals = _aligned(answer, row, renderer)
        if signals is None:
            continue
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor([row.ids])).logits[0]
        p = logits.softmax(-1)
        dense = signals.to_dense(p.shape[-1])
        for place, j in enumerate(number for number, selected in enumerate(row.mask) if selected):
            if row.ids[j] in renderer.eos_ids:
                continue
            kept = dense[place] > 0
            torch.testing.assert_close(dense[place][kept], p[j - 1][kept], rtol=0.08, atol=2e-3)
            assert signals.tail_mass[place] == pytest.approx(1 - p[j - 1][kept].sum().item(), abs=0.02)
            compared += 1
    model.close()
    assert compared > 0
