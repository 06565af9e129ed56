"""A model behind an API is measured like any other; what its server cannot tell is refused before anything is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest
from misbehaving import misbehaving, paid, problems
from test_capture_vllm import Vllm
from test_evaluation_scores import run_of
from tiny_llama import write_jsonl
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.errors import ModelError, TeacherError
from stillroom.contracts.recipe import Task
from stillroom.evaluation import EvaluationTask, Item, ModelSpec, Settings
from stillroom.evaluation.job import Job
from stillroom.evaluation.tasks import text_task
from stillroom.evaluation.worker import measure
from stillroom.stages import evaluate as stage
from stillroom.stages.context import StageContext
from stillroom.stages.evaluate import read_file

CHOICES = [
    {"question": "Which is text?", "choices": ["the text", "every line fits", "lines"], "answer": 0},
    {"question": "What does it return?", "choices": ["lines", "a width of seventy"], "answer": 1},
]
WRITTEN = EvaluationTask("w", "exact", [Item([{"role": "user", "content": "who?"}], "me")])
SETTINGS = Settings(max_length=60, max_new_tokens=4)


def ignore(*_: object) -> None:
    """No progress is shown."""


@pytest.fixture(scope="module")
def server() -> Iterator[Vllm]:
    made = Vllm()
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def folder(server: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's model and tokenizer on disk."""
    folder = tmp_path_factory.mktemp("models") / "served"
    server.model.save_pretrained(folder)
    server.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def reading(tmp_path: Path) -> list[EvaluationTask]:
    path = write_jsonl(tmp_path / "choices.jsonl", CHOICES)
    texts = text_task([["Wrap the text so that every line fits. " * 4], ["lines"]], Path("t"), "texts")
    kinds = ("letter", "text")
    return [read_file(Task(file=str(path), score="likeliest", options=o, name=o), path) for o in kinds] + [
        texts
    ]


def test_a_server_that_reads_given_texts_gives_the_figures_of_the_model_itself(
    server: Vllm, folder: Path, reading: list[EvaluationTask]
) -> None:
    served = ModelSpec("served", "api", "teacher", tokenizer=str(folder), api=server.url)
    job, done = Job(served, reading, SETTINGS), list[float]()
    theirs = measure(job, lambda count, note=None: done.append(count))
    own = measure(Job(ModelSpec("own", "local", str(folder), dtype="float32"), reading, SETTINGS), ignore)
    assert sum(done) == job.size == 6
    for task in ("letter", "text"):
        for a, b in zip(theirs.verdicts[task], own.verdicts[task], strict=True):
            assert (a.text, a.fields) == (b.text, b.fields)
            assert a.confidence == pytest.approx(b.confidence, rel=1e-3)
    a, b = theirs.likelihoods["texts"], own.likelihoods["texts"]
    assert (a.tokens, a.bytes, a.kl) == (b.tokens, b.bytes, None)
    assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_a_model_behind_an_api_is_measured_by_one_command(tmp_path: Path) -> None:
    """The server knows the right answer to all questions but the last."""
    asked = [*islice(problems(), 4), ("Which is it?", "#### 3")]
    path = write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": q, "answer": a} for q, a in asked])
    command = ["eval", "org/large", "--file", str(path), "--score", "number"]
    with misbehaving(tmp_path / "paid.jsonl", faults=0) as url:
        told = CliRunner().invoke(app, [*command, "--api", url])
        assert told.exit_code == 0, told.output
        assert re.search(r"^exact +0\.8000 ", told.output, re.M)
        text = str(write_jsonl(tmp_path / "texts.jsonl", [{"text": "So it is."}]))
        reading = ["eval", "org/large", "--file", text, "--score", "perplexity", "--api", url]
        refused = CliRunner().invoke(app, reading)
    assert isinstance(refused.exception, TeacherError)
    assert "its tokenizer is not known" in refused.exception.what


def test_a_server_that_does_not_is_refused_before_anything_is_asked(
    server: Vllm, folder: Path, reading: list[EvaluationTask], tmp_path: Path
) -> None:
    spec = ModelSpec("served", "api", "teacher", tokenizer=str(folder), api=server.url)
    server.extension = False
    server.bodies.clear()
    try:
        with pytest.raises(TeacherError, match="gives no log-probabilities of prompts") as caught:
            measure(Job(spec, [WRITTEN, *reading], SETTINGS), ignore)
    finally:
        server.extension = True
    assert caught.value.got == "no prompt_logprobs for 2 tokens"
    assert "teacher: false" in (caught.value.do or "")
    assert [len(body["prompt"]) for body in server.bodies] == [2]
    log = tmp_path / "paid.jsonl"
    with misbehaving(log, faults=0) as url:  # it knows chats only
        elsewhere = ModelSpec("chats", "api", "m", tokenizer=str(folder), api=url)
        with pytest.raises(TeacherError, match="has no /completions"):
            measure(Job(elsewhere, [WRITTEN, *reading], SETTINGS), ignore)
    assert paid(log) == []


def test_a_server_with_other_tokens_or_none_that_are_known_is_refused(
    server: Vllm, folder: Path, reading: list[EvaluationTask]
) -> None:
    unknown = ModelSpec("served", "api", "teacher", api=server.url)
    with pytest.raises(TeacherError, match="its tokenizer is not known"):
        measure(Job(unknown, reading, SETTINGS), ignore)
    server.shift = 1
    try:
        spec = ModelSpec("served", "api", "teacher", tokenizer=str(folder), api=server.url)
        with pytest.raises(ModelError, match="do not mean the same by a token's id"):
            measure(Job(spec, reading, SETTINGS), ignore)
    finally:
        server.shift = 0


def test_a_run_learns_at_its_start_that_its_teacher_cannot_be_measured(
    server: Vllm, folder: Path, tmp_path: Path
) -> None:
    task = {"file": str(write_jsonl(tmp_path / "choices.jsonl", CHOICES)), "score": "likeliest"}
    more = {"teacher": {"api": server.url, "model": "m"}, "student": {"model": str(folder)}}
    measured = run_of(tmp_path / "a", **more, evaluate={"tasks": [task]})
    stage.check_teacher(measured)
    server.extension = False
    try:
        with pytest.raises(TeacherError, match="gives no log-probabilities of prompts"):
            stage.check_teacher(measured)
        left_out = run_of(tmp_path / "b", **more, evaluate={"tasks": [{**task, "teacher": False}]})
        stage.check_teacher(left_out)
    finally:
        server.extension = True
    context = StageContext(left_out, "evaluate")
    tasks = stage.read_tasks(context)
    assert stage._asked_of(context, ModelSpec("teacher", "api", "m"), tasks) == []
    assert stage._asked_of(context, ModelSpec("student", "local", "s"), tasks) == tasks
