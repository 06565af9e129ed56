"""The filter stage in a run: doubts from the lesson book, a judge behind an API, the student's own answers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tiny_llama import save_tiny, write_jsonl

from stillroom.checks import strip_reasoning
from stillroom.contracts.errors import DataError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.records import Answer, from_line
from stillroom.contracts.runfolder import Run
from stillroom.lessons.filter.certainty import certainty
from stillroom.lessons.teach.answers import lesson_messages
from stillroom.models.local import LocalModel
from stillroom.pipeline import run_pipeline

asked: list[str] = []


class JudgeServer(BaseHTTPRequestHandler):
    """Prefers the longer answer, whichever comes first."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        asked.append(text)
        one, other = (text.split(f'<answer name="{name}">\n')[1].split("\n</answer>")[0] for name in "AB")
        said = f"Longer is more.\nBetter: {'A' if len(one) >= len(other) else 'B'}"
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        reply = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, api: str) -> Run:
    base = tmp_path_factory.mktemp("job")
    save_tiny(base / "teacher", seed=1)
    save_tiny(base / "small", seed=2, layers=1)
    write_jsonl(base / "questions.jsonl", [{"prompt": f"the red a costs {n} pounds"} for n in range(20)])
    recipe: dict[str, Any] = {
        "name": "tiny",
        "teacher": {"model": "teacher"},
        "student": {"model": "small"},
        "prompts": [{"file": "questions.jsonl"}],
        "teach": {"max_new_tokens": 10, "samples": 3, "batch_size": 16},
        "filter": {
            "verify": "pattern", "pattern": "(?s).*", "truncated": "keep", "keep": 1, "facts": "flag",
            "judge": {"model": "big", "api": api}, "student_sample": 8,
        },
    }  # fmt: skip
    made = Run(base / "runs/tiny", build_recipe(recipe, "recipe"), base)
    made.save_recipe()
    assert run_pipeline(made, Progress(), until="filter") == ["prompts", "teach", "filter"]
    return made


def lines(run: Run, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder("filter") / name).read_text().splitlines()]


def test_the_judges_choice_is_kept_and_paid_for_once(run: Run) -> None:
    lessons = lines(run, "lessons.jsonl")
    assert len(lessons) == 20
    counts = run.manifest("filter").counts  # type: ignore[union-attr]
    assert counts["judge"]["compared"] >= 40
    assert len(lines(run, "judgements.jsonl")) == len(asked) <= 2 * counts["judge"]["compared"]
    pairs = lines(run, "preferences.jsonl")
    assert pairs
    for pair in pairs:
        assert len(strip_reasoning(pair["chosen"][0]["content"])) > len(
            strip_reasoning(pair["rejected"][0]["content"])
        )
    assert any("nothing says how good the judge is" in warning for warning in counts["warnings"])


def test_the_student_before_its_training_is_compared_with_the_teacher(run: Run) -> None:
    counts = run.manifest("filter").counts  # type: ignore[union-attr]
    assert counts["lead"]["questions"] == 8
    assert counts["lead"]["teacher"] == counts["lead"]["student"] == 1  # every text has the pattern
    assert any(warning.startswith("hardly anything to learn") for warning in counts["warnings"])
    card = (run.folder("filter") / "dataset-card.md").read_text()
    assert "Of 8 checked questions the teacher has 100.0% right" in card or "teacher has 100% right" in card


def test_where_nothing_is_left_the_reasons_are_counted(run: Run) -> None:
    rule = run.recipe.filter.model_copy(update={"pattern": "never", "judge": None, "facts": "none"})
    recipe = run.recipe.model_copy(update={"filter": rule})
    scratch = run.base / "runs/other"
    shutil.copytree(run.path, scratch)
    with pytest.raises(DataError, match=r"no lesson is left\n.*not of the pattern asked for: 60"):
        run_pipeline(Run(scratch, recipe, run.base), Progress(), until="filter")


def test_facts_are_held_against_samples_and_the_lesson_book(run: Run) -> None:
    facts = run.manifest("filter").counts["facts"]  # type: ignore[union-attr]
    assert facts["examined"] == facts["samples"] == facts["answers"] == 60
    assert facts["probabilities"] > 0


def test_the_book_tells_the_probability_of_every_piece_as_the_teacher_does(run: Run) -> None:
    sure = certainty(run.folder("teach") / "signals", lambda: run.base / "small")
    teacher = LocalModel(run.base / "teacher", dtype="float32")
    told = 0
    for line in (run.folder("teach") / "answers.jsonl").read_text().splitlines():
        said = from_line(Answer, json.loads(line))
        answer = replace(said, messages=lesson_messages(said.messages, reasoning=True))
        pieces = sure(answer)
        if pieces is None:
            continue  # a text that its tokens do not spell
        told += 1
        row = teacher.renderer.lesson(answer.messages, complete=answer.finish == "stop")
        taken = [i for i, on in zip(row.ids, row.mask, strict=True) if on]
        (logits,) = teacher.logits([row])
        own = logits.softmax(-1)[range(len(taken)), taken].tolist()
        for (_, chance), true in zip(pieces, own, strict=True):
            # The head is exact to a code's step; what is drawn from the tail is small either way.
            assert chance == pytest.approx(true, rel=0.1, abs=0.1)
    assert told == run.manifest("filter").counts["facts"]["probabilities"] > 0  # type: ignore[union-attr]
