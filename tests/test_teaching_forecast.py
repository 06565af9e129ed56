"""`stillroom plan` on asking: every source is counted, or the plan says that it is not."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_jsonl

from stillroom.contracts.errors import DataError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.records import Reply, Request, content_key
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.forecast import forecast, forecast_lines
from stillroom.lessons.teach.answered import AnswersFile, answer_of
from stillroom.planning.plan import Asked, plan_lines

OPENAI = "https://api.openai.com/v1"
QUESTIONS = [{"prompt": f"Question {number}, of forty characters or so."} for number in range(10)]


def run_of(folder: Path, sources: list[dict[str, Any]], **sections: Any) -> Run:
    tree = {
        "name": "x",
        "teacher": {"api": OPENAI, "model": "gpt-4o-mini", "accept_terms": True},
        "student": {"model": "embedded:tickets-teacher"},
        "prompts": sources,
        "teach": {"signal": {"kind": "none"}, "max_new_tokens": 100},
        "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
        **sections,
    }
    return Run(folder / "run", build_recipe(tree), folder)


def told(run: Run) -> str:
    return "\n".join(f"{label} {text}" for label, text in forecast_lines(forecast(run), run))


def test_questions_are_counted_in_files_of_every_kind_whatever_their_lines_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", QUESTIONS)
    (tmp_path / "b.json").write_text(json.dumps(QUESTIONS, indent=2))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "d.csv").write_text('question\n"one\ntwo"\n' * 1)
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as pack:
        pack.writestr("x/q.txt", "one?\ntwo?\n")
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder/a.jsonl", QUESTIONS)
    names = ["a.jsonl", "b.json", "c.jsonl.gz", "d.csv", "e.zip", "folder"]
    found = forecast(run_of(tmp_path, [{"file": name} for name in names] + [{"file": "a.jsonl", "limit": 3}]))
    assert found.given == 10 + 10 + 10 + 1 + 2 + 10 + 3
    with pytest.raises(DataError, match="does not exist"):
        forecast(run_of(tmp_path, [{"file": "nowhere.jsonl"}]))


def test_inventions_cost_requests_and_money_and_are_told_apart_from_answers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "few.jsonl", QUESTIONS)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("A long text. " * 100)
    sources = [
        {"file": "few.jsonl", "expand": {"count": 500, "methods": ["seeds"]}},
        {"file": "docs", "form": "documents", "expand": {"count": 50}},
    ]
    run = run_of(tmp_path, sources)
    found = forecast(run)
    assert (found.given, found.invented, found.requests, found.most_requests) == (10, 550, 110, 440)
    assert found.answers == 560
    # Each passage is shown to the inventing teacher, and stands before the question that is asked.
    assert found.tokens > 50 * 500
    assert found.inventing_tokens > 10 * 500
    text = told(run)
    assert "questions 560 x 1 answers from gpt-4o-mini" in text
    assert "up to 550 invented by the teacher: 110 requests more, at most 440" in text
    assert "inventing about" in text
    assert "answers about 56,000, at most 56,000" in text

    # Examples that are kept for the evaluation are not asked.
    few = {"tasks": [{"file": "few.jsonl", "score": "exact"}]}
    kept = forecast(run_of(tmp_path, sources, evaluate=few))
    assert (kept.given, kept.held_out, kept.answers) == (0, 10, 550)
    assert "left out 10 that stand in an evaluation file" in told(run_of(tmp_path, sources, evaluate=few))
    assert "money about $0.0" in text
    # A mixture draws fewer; the inventions are made all the same.
    drawn = forecast(run_of(tmp_path, sources, mix={"count": 56}))
    assert (drawn.answers, drawn.requests) == (56, 110)
    assert drawn.tokens == pytest.approx(found.tokens / 10, rel=0.01)


def test_what_is_not_counted_is_named_and_what_a_log_answers_is_not_asked(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "one?"}]}
    choice = {"message": {"role": "assistant", "content": "1"}, "finish_reason": "stop"}
    write_jsonl(tmp_path / "log.jsonl", [{"request": body, "response": {"choices": [choice]}}, QUESTIONS[0]])
    run = run_of(tmp_path, [{"file": "log.jsonl"}, {"file": "hub:openai/gsm8k:main"}])
    found = forecast(run)
    assert (found.given, found.logged, found.uncounted) == (2, 1, ["hub:openai/gsm8k:main"])
    text = told(run)
    assert "1 answered in logs, which nobody is asked again" in text
    assert "not counted hub:openai/gsm8k:main" in text
    assert "at most 100 (" in text


def test_the_plan_takes_the_length_of_the_answers_that_are_there_and_warns_of_refusals(
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "q.jsonl", QUESTIONS * 100)
    teacher = {"api": OPENAI, "model": "gpt-4o-mini"}
    top_k = {"signal": {"kind": "top-k"}, "max_new_tokens": 100}
    run = run_of(tmp_path, [{"file": "q.jsonl"}], teacher=teacher, teach=top_k)

    def plan() -> str:
        found = forecast(run)
        asked = Asked(found.answers, found.mean_tokens, list(forecast_lines(found, run)))
        return "\n".join(plan_lines(run, asked))

    first = plan()
    assert re.search(r"lesson book    at most 7\.\d MB if answers have 100 tokens \(a guess\)", first)
    assert "the run will be refused: teacher.accept_terms" in first
    with AnswersFile(run.folder("teach") / "answers.jsonl", writable=True) as file:
        reply = Reply("yes", "stop", completion_tokens=20)
        file.append(answer_of(Request(content_key(n), []), reply, 0.5) for n in range(4))
    second = plan()
    assert re.search(
        r"lesson book    at most 1\.[4-9] MB if answers have 20 tokens \(as those so far have\)", second
    )
    assert "so far       4 answers, $2.00 spent" in second
    assert "answers about 20,000, at most 100,000 (20 each, the mean of 4 so far)" in second


def test_a_local_teachers_time_is_said_not_to_be_estimated(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    local = run_of(tmp_path, [{"file": "q.jsonl"}], teacher={"model": "embedded:tickets-teacher"})
    assert "a local teacher's is not estimated" in told(local)


def test_every_recipe_that_comes_along_is_valid_and_can_be_planned(tmp_path: Path) -> None:
    from stillroom.contracts.loading import load_recipe

    recipes = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert len(recipes) >= 5
    for path in recipes:
        recipe = load_recipe(path)
        folder = tmp_path / recipe.name
        for source in recipe.prompts:
            place = (folder / source.file).resolve()
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.suffix == ".csv":
                rows = [f'"{row["prompt"]}",{number % 2}' for number, row in enumerate(QUESTIONS)]
                place.write_text("\n".join(["text,category", *rows]))
            else:
                lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS).encode()
                place.write_bytes(gzip.compress(lines) if place.suffix == ".gz" else lines)
        found = told(Run(folder / "run", recipe, folder))
        assert f"x {recipe.teach.samples} answers from {recipe.teacher.model}" in found
