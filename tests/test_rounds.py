"""On-policy rounds: what the student writes is scored by the teacher, and one training goes on over it, kills or not."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_llama import save_tiny
from transformers import AutoModelForCausalLM

from stillroom.contracts.child import run_child
from stillroom.contracts.errors import Fault, ModelError, RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Rounds
from stillroom.contracts.runfolder import Run
from stillroom.models import writing
from stillroom.models.local import LocalModel
from stillroom.models.writing import written_rows
from stillroom.pipeline import run_pipeline
from stillroom.planning.plan import Asked, plan_lines
from stillroom.signals import Book, capture, token_keys
from stillroom.stages.distil import rounds
from stillroom.training.batches import JoinedRows, MemoryRows, StepPlan
from stillroom.training.rounds import Calendar, OwnWriting


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def settings_of(model: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": "rounds",
        "teacher": {"model": str(model), "dtype": "float32"},
        "student": {"prune": {"layers": 1}},
        "prompts": [{"file": "sums.jsonl", "answers": "given"}],
        "splits": {"tune": 0.2},
        "teach": {"max_new_tokens": 8, "batch_size": 8},
        "distil": {
            "rounds": {"count": 2, "start": 0.34, "questions": 6, "share": 0.5},
            "steps": 6,
            "batch_size": 4,
            "micro_batch_size": 4,
            "learning_rate": 1e-2,
            "precision": "float32",
            "checkpoint_every": 1,
            "validate_every": 2,
        },
    }
    for key, value in changes.items():
        place, _, name = key.partition("__")
        settings[place] = {**settings[place], name: value} if name else value
    return settings


def job(where: Path, settings: dict[str, Any]) -> Path:
    where.mkdir(exist_ok=True)
    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(30)]
    (where / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    (where / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return where / "recipe.yaml"


def trained(where: Path, settings: dict[str, Any]) -> Run:
    job(where, settings)
    run = Run(where / "run", build_recipe(settings, "test"), where)
    run_pipeline(run, Progress(), until="distil")
    return run


def weights(run: Path) -> bytes:
    return (run / "distil/student/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed training in rounds."""
    return trained(tmp_path_factory.mktemp("undisturbed") / "job", settings_of(teacher))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roles in this process, which is quicker; what processes of their own change is tested apart."""

    def call(work: str, job: str, advance: Any, **_: Any) -> Any:
        module, _, name = work.partition(":")
        return getattr(importlib.import_module(module), name)(job, advance)

    monkeypatch.setattr(rounds, "run_child", call)
    monkeypatch.setattr(writing, "run_child", call)


# The plan of steps.


def test_rounds_begin_at_even_steps_behind_the_first_share() -> None:
    calendar = Calendar(Rounds(count=4, start=0.2), 100)
    assert [calendar.begins(number) for number in range(1, 6)] == [20, 40, 60, 80, 100]
    assert [calendar.number(step) for step in (0, 19, 20, 39, 40, 99)] == [0, 0, 1, 1, 2, 4]


@pytest.mark.parametrize(("share", "buffer"), [(0.5, 1), (0.3, 2), (1.0, 3), (0.06, 2)])
def test_a_step_holds_the_share_of_own_rows_of_the_newest_rounds(share: float, buffer: int) -> None:
    calendar = Calendar(Rounds(count=3, start=0.25, share=share, buffer=buffer), 40)
    own = OwnWriting(calendar, lessons=50, written=[10, 12, 8])
    starts, ends = [50, 60, 72], [60, 72, 80]
    taken = 0
    for step in range(10, 40):
        assert own.covers(step)
        rows = own.rows(step, 8, seed=1)
        number = calendar.number(step)
        mine = rows[rows >= 50]
        taken += len(mine)
        assert len(rows) == 8
        assert len(set(rows.tolist())) == 8
        assert ((mine >= starts[max(0, number - buffer)]) & (mine < ends[number - 1])).all()
        assert (rows == own.rows(step, 8, seed=1)).all()
    assert taken == pytest.approx(share * 8 * 30, abs=1)
    assert not own.covers(9)


def test_before_the_first_round_the_order_is_that_of_a_training_without_rounds() -> None:
    calendar = Calendar(Rounds(count=1, start=0.5), 8)
    lengths = np.arange(5, 25)
    plain = StepPlan(lengths, batch_size=4, micro_batch_size=4, steps=8, seed=3)
    rounds = StepPlan(
        lengths, batch_size=4, micro_batch_size=4, steps=8, seed=3, draws=[OwnWriting(calendar, 20, [])]
    )
    assert list(plain)[:4] == list(rounds)[:4]
    assert list(plain)[4:] != list(rounds)[4:]


def test_a_round_in_which_nothing_usable_was_written_is_made_of_lessons() -> None:
    own = OwnWriting(Calendar(Rounds(count=2, start=0.0), 4), lessons=9, written=[0])
    assert sorted(own.rows(0, 9, seed=0)) == list(range(9))


def test_joined_rows_are_those_of_their_sources_in_order() -> None:
    texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]
    parts = [MemoryRows([(ids, [True] * len(ids)) for ids in some]) for some in (texts[:2], [], texts[2:])]
    joined = JoinedRows(parts)
    assert joined.lengths.tolist() == [3, 2, 4, 1]
    assert [joined[index].ids.tolist() for index in range(4)] == texts


# The whole of it.


def test_the_student_writes_and_the_teacher_scores_just_that(finished: Run, teacher: Path) -> None:
    rounds = finished.path / "distil/rounds"
    log = json.loads((rounds / "rounds.json").read_text())
    assert [(line["round"], line["step"]) for line in log] == [(1, 2), (2, 4), (3, 6)]
    assert all(0 <= line["score"] <= 1 for line in log)
    book, local = Book.open(rounds / "signals"), LocalModel(teacher, dtype="float32", batch_size=8)
    for number in (1, 2):
        lines = [
            json.loads(line) for line in (rounds / f"{number:02d}/written.jsonl").read_text().splitlines()
        ]
        assert len(lines) == len({line["key"] for line in lines}) == 6
        rows = list(written_rows(rounds / f"{number:02d}/written.jsonl", 2048))
        for row, line, logits in zip(rows, lines, local.logits(rows), strict=True):
            assert row.ids == line["prompt"] + line["answer"]
            assert local.renderer.answer_text(line["prompt"], line["answer"]) == line["text"]
            targets = book.row(book.key(row.ids, row.mask)).targets
            seeds = token_keys(book.key(row.ids, row.mask), torch.tensor(row.mask).nonzero().flatten())
            wanted = capture(logits[:, : book.header.vocab], keys=seeds, budget=book.header.budget)
            assert torch.equal(targets.ids, wanted.ids)
            torch.testing.assert_close(targets.weights, wanted.weights)
    local.close()
    metrics = [json.loads(line) for line in (finished.path / "distil/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "validation_kl" in line] == [2, 4, 6]
    assert finished.manifest("distil").counts["models"]["student"]["rounds"] == log
    assert not (rounds / "student").exists()
    assert run_pipeline(finished, Progress(), until="distil") == []


def test_what_is_drawn_differs_between_rounds(finished: Run) -> None:
    rounds = finished.path / "distil/rounds"
    one, two = (
        {json.loads(line)["key"] for line in (rounds / name / "written.jsonl").read_text().splitlines()}
        for name in ("01", "02")
    )
    assert one != two


@pytest.mark.parametrize("moment", ["01/written-questions.jsonl", "01/scored"])
def test_a_training_killed_at_any_moment_ends_with_the_same_student(
    finished: Run, teacher: Path, tmp_path: Path, moment: str
) -> None:
    recipe = job(tmp_path / "job", settings_of(teacher))
    command = [
        sys.executable,
        "-m",
        "stillroom",
        "run",
        str(recipe),
        "--runs",
        str(tmp_path),
        "--until",
        "distil",
    ]
    child = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 200
    while not (tmp_path / "rounds/distil/rounds" / moment).exists():
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "rounds") == weights(finished.path)


@pytest.mark.usefixtures("at_once")
def test_a_live_teacher_needs_no_scoring(teacher: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teach__signal": {"kind": "none"}, "distil__teacher": "live"}
    run = trained(tmp_path / "live", settings_of(teacher, **changes))
    assert not (run.path / "distil/rounds/signals").exists()
    assert (run.path / "distil/rounds/02/written.jsonl").is_file()
    AutoModelForCausalLM.from_pretrained(run.path / "distil/student")


@pytest.mark.usefixtures("at_once")
def test_an_adapter_goes_through_rounds_and_the_base_stays(teacher: Path, tmp_path: Path) -> None:
    before = (teacher / "model.safetensors").read_bytes()
    student = {"model": str(teacher), "lora": {"rank": 2}}
    run = trained(tmp_path / "lora", settings_of(teacher, student=student))
    assert (teacher / "model.safetensors").read_bytes() == before
    assert weights(run.path) != before
    assert not list((run.path / "distil/student").glob("adapter*"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("scores", "patience", "kept"),
    [
        ([0.2, 0.6, 0.5, 0.4, 0.3, 0.2], 2, 2),
        ([0.2, 0.6, 0.5, 0.7, 0.7, 0.7], 2, 6),
        ([0.2, 0.1, 0.1, 0.1, 0.1, 0.1], None, 6),
    ],
)
def test_without_a_better_score_training_ends_and_the_best_student_is_kept(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    patience: int | None,
    kept: int,
) -> None:
    monkeypatch.setattr(rounds._Rounds, "_score", lambda self, home: scores[int(home.name) - 1])
    settings = {"count": 5, "start": 0.2, "questions": 4, "patience": patience}
    run = trained(tmp_path / "stop", settings_of(teacher, distil__rounds=settings, distil__steps=10))
    log = json.loads((run.path / "distil/rounds/rounds.json").read_text())
    assert [line["score"] for line in log] == scores[: 4 if kept == 2 else 6]
    counts = run.manifest("distil").counts["models"]["student"]
    assert counts["steps"] == log[kept - 1]["step"]
    plain = trained(
        tmp_path / "plain",
        settings_of(teacher, distil__rounds=settings | {"patience": None}, distil__steps=10),
    )
    assert (weights(run.path) == weights(plain.path)) == (kept == 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distil__loss": {"hard": 1.0, "soft": 0.0}}, "nobody would listen"),
        (
            {
                "teacher": {"model": "m", "api": "http://localhost:1/v1"},
                "student": {"model": "s"},
                "teach": {"signal": {"kind": "top-k"}},
                "prompts": [{"file": "sums.jsonl"}],
            },
            "scores its own answers only",
        ),
        ({"distil__curriculum": {"until": 0.9}}, r"curriculum.until \(0.9\) is later than rounds.start"),
    ],
)
def test_what_does_not_go_together_is_refused(teacher: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_recipe(settings_of(teacher, **changes), "test")


def test_the_plan_tells_of_the_rounds(teacher: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", build_recipe(settings_of(teacher), "test"), tmp_path)
    lines = list(plan_lines(run, Asked(600, None, [])))
    assert "rounds         2 of up to 6 answers by the student, each scored by the teacher" in lines


def test_rounds_leave_the_baselines_as_they_are(teacher: Path, tmp_path: Path) -> None:
    settings = settings_of(teacher, distil__rounds=None) | {"baselines": ["answers-only"]}
    run = trained(tmp_path / "job", settings)
    before = (run.path / "distil/baselines/answers-only/model.safetensors").stat().st_mtime_ns
    changed = settings | {"distil": settings["distil"] | {"past": {"decay": 0.5}, "teacher": "live"}}
    run_pipeline(Run(run.path, build_recipe(changed, "test"), run.base), Progress(), until="distil")
    assert (run.path / "distil/baselines/answers-only/model.safetensors").stat().st_mtime_ns == before


# Processes of their own.


def test_what_a_child_raises_is_raised_here_and_what_kills_it_is_said(tmp_path: Path) -> None:
    def ask(work: str, **job: Any) -> Any:
        return run_child(work, json.dumps(job), label="writing", advance=lambda *_: None, relief="use less")

    common = {"papers": [], "max_new_tokens": 4, "batch_size": 2, "trust_remote_code": False}
    with pytest.raises(ModelError, match="nowhere"):
        ask("stillroom.models.writing:write", model=str(tmp_path / "nowhere"), **common)
    with pytest.raises(Fault, match="writing ended without a result"):
        ask("stillroom.models.writing:nothing_of_the_kind")
