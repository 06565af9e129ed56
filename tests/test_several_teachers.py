"""Several teachers in one recipe: each has a book over the same tokens, and the student hears their mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe, load_recipe
from stillroom.contracts.runfolder import Run
from stillroom.signals import Book
from stillroom.stages.context import StageContext
from stillroom.stages.distil.stage import DistilStage
from tests.test_pipeline import LABELLED, QUESTIONS, stillroom
from tests.tiny_llama import save_tiny, write_jsonl

RECIPE = {
    "name": "several",
    "teacher": [
        {"model": "teacher", "weight": 1},
        {"model": "other", "weight": 3},
        {"model": "expert", "domains": ["labelled.jsonl"]},
    ],
    "student": {"prune": {"layers": 1, "keep": "first"}},
    "prompts": [{"file": "questions.jsonl"}, {"file": "labelled.jsonl"}],
    "teach": {"max_new_tokens": 12, "batch_size": 16},
    "filter": {"truncated": "keep"},
    "distil": {"steps": 4, "batch_size": 8, "micro_batch_size": 8},
    "quantise": [],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    for seed, name in enumerate(("teacher", "other", "expert"), 1):
        save_tiny(folder / name, seed=seed)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "labelled.jsonl", LABELLED)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture(scope="module")
def finished(place) -> Path:
    done = stillroom("run", place, "--runs", place / "runs", "--until", "distil")
    assert done.returncode == 0, done.stderr
    return place / "runs" / "several"


def test_every_teacher_has_a_book_of_what_it_is_heard_of(finished):
    counts = json.loads((finished / "teach/manifest.json").read_text())["counts"]
    assert counts["rows"] == 48
    others = counts["more teachers"]
    assert [others[name]["rows"] for name in ("2: other", "3: expert")] == [40, 8]
    assert Book.open(finished / "teach/signals-3").header.teacher == "expert"


def test_the_student_hears_the_mixture_and_of_a_domain_its_expert_alone(finished):
    stage = DistilStage(StageContext(Run.open(finished), "distil"))
    lessons = list(stage.lessons("train"))
    rows = stage.rows(iter(lessons), signals=True)
    books = [Book.open(finished / f"teach/signals{end}") for end in ("", "-2", "-3")]
    seen = set()
    for number, lesson in enumerate(lessons):
        key = books[0].key(lesson.ids, lesson.mask)
        found = rows[number].targets.to_dense(books[0].header.vocab)
        if lesson.source == "labelled.jsonl":
            expected = books[2].row(key).targets.to_dense(books[0].header.vocab)
        else:
            parts = [book.row(key).targets.to_dense(books[0].header.vocab) for book in books[:2]]
            expected = 0.25 * parts[0] + 0.75 * parts[1]
        assert torch.allclose(found, expected, atol=1e-6)
        seen.add(lesson.source)
    assert seen == {"questions.jsonl", "labelled.jsonl"}


def test_a_run_goes_on_with_the_books_that_are_there_and_drops_those_of_another_model(place, finished):
    again = stillroom("run", finished, "--until", "distil")
    assert "distil: holds" in again.stderr
    first, second = (finished / f"teach/signals{end}/header.json" for end in ("", "-2"))
    stamps = [path.stat().st_mtime_ns for path in (first, second)]
    shutil.rmtree(place / "other")
    save_tiny(place / "other", seed=9)
    done = stillroom("run", finished, "--until", "distil")
    assert done.returncode == 0, done.stderr
    assert "teach: more teachers was" in done.stderr
    assert [
        path.stat().st_mtime_ns == stamp for path, stamp in zip((first, second), stamps, strict=True)
    ] == [
        True,
        False,
    ]


def test_the_short_form_is_what_the_run_keeps(finished):
    kept = load_recipe(finished / "recipe.yaml")
    assert [kept.teacher.model, *(one.model for one in kept.more_teachers)] == ["teacher", "other", "expert"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": [{"model": "a"}, {"model": "b", "domains": ["nowhere.jsonl"]}]}, "nowhere.jsonl"),
        ({"teacher": [{"model": "a"}, {"model": "b", "api": "http://127.0.0.1:1/v1"}]}, "only the first"),
        ({"distil": {"rounds": {}}}, "through a book"),
        ({"teach": {"signal": {"kind": "hidden"}}}, "mixed by teach.signal.kind"),
        ({"teacher": []}, "teacher"),
        (
            {"teacher": [{"model": name, "domains": ["questions.jsonl"]} for name in "ab"]},
            "leave them out of one",
        ),
    ],
)
def test_what_several_teachers_cannot_do_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        build_recipe({**RECIPE, **changes}, "recipe")
