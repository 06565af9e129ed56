"""The route stage with a real tiny student in llama.cpp and its teacher: set apart, asked once, fitted, resumed."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_llama import save_tiny, write_jsonl

from stillroom.contracts.errors import RecipeError, StillroomError
from stillroom.contracts.loading import build_recipe, load_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.forecast import forecast
from stillroom.pipeline import outlook, run_pipeline
from stillroom.planning.plan import Asked, plan_lines
from stillroom.routing import Attempt
from stillroom.serving import Cascade
from stillroom.stages import route
from stillroom.stages.context import StageContext

QUESTIONS = [{"prompt": f"the red a costs {n} pounds, the b {n + 3}"} for n in range(150)]
LABELLED = [{"prompt": f"the blue b costs {n}", "reference": f"{n} pounds"} for n in range(50)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_tiny(folder / "teacher", seed=1)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "labelled.jsonl", LABELLED)
    recipe = {
        "name": "routed",
        "teacher": {"model": "teacher"},
        "student": {"prune": {"layers": 1, "keep": "first"}},
        "prompts": [{"file": "questions.jsonl"}, {"file": "labelled.jsonl"}],
        "splits": {"tune": 0.05, "calibrate": 0.45},
        "teach": {"max_new_tokens": 8, "batch_size": 32},
        "filter": {"truncated": "keep"},
        "distil": {"steps": 3, "batch_size": 8},
        "quantise": ["Q8_0"],
        "evaluate": {"max_new_tokens": 8, "tasks": [{"score": "likelihood"}]},
        "route": {"score": "exact", "max_error": 0.3, "max_share": 0.5},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def run(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("runs") / "routed", load_recipe(job / "recipe.yaml"), job)
    run.save_recipe()
    run_pipeline(run, Progress())
    return run


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(path: Path) -> set[str]:
    return {line["messages"][0]["content"] for line in lines(path)}


def test_questions_set_apart_are_in_no_other_split(run: Run) -> None:
    apart, taught = asked(run.path / "prompts/calibration.jsonl"), asked(run.path / "prompts/prompts.jsonl")
    assert 60 < len(apart) < 120
    assert not apart & taught
    assert len(apart | taught) == len(QUESTIONS) + len(LABELLED)
    assert not apart & asked(run.path / "teach/answers.jsonl")
    assert not apart & asked(run.path / "filter/lessons.jsonl")


def test_both_models_answer_each_of_them_once(run: Run) -> None:
    manifest = run.manifest("route")
    assert manifest is not None
    apart = lines(run.path / "prompts/calibration.jsonl")
    assert manifest.counts["questions"] == len(apart)
    assert manifest.counts["with a right answer"] == sum("reference" in line for line in apart) > 5
    files = sorted((run.path / "route/answers").iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == ["student-Q8_0", "teacher"]
    for path in files:
        assert len(lines(path)) == len(apart)
    assert all(line["logprobs"] for line in lines(files[0]))


def test_the_fitted_cascade_decides_and_its_figures_are_rows(run: Run) -> None:
    cascade = Cascade.load(run.path / "route/cascade.json")
    assert cascade.policy.max_error == 0.3
    assert cascade.space is not None
    decision = cascade.decide(
        Attempt("the red a costs 4 pounds, the b 7", [-0.1] * 8, valid=True, complete=False)
    )
    assert decision.score is not None
    rows = json.loads((run.path / "route/results.json").read_text())
    found = {row["metric"] for row in rows}
    assert {"quality", "quality:oracle", "quality:random", "escalated"} <= found
    assert all(row["model"] == "student-Q8_0" for row in rows)
    assert len([row for row in rows if row["metric"] == "quality"]) == 21
    # No more is sent on than the cap allows, but for what the two halves differ by.
    assert cascade.promise.escalated < 0.8


def test_the_report_says_the_promise_and_draws_the_curve(run: Run) -> None:
    page = (run.path / "report.html").read_text()
    says = json.loads((run.path / "route/cascade.json").read_text())["says"]
    assert 'id="cascade"' in page
    assert all(html.escape(sentence, quote=False).split("'")[0] in page for sentence in says)
    assert page.count('class="curve accent"') >= 1
    assert "questions that go to the teacher" in page


def test_a_changed_wish_asks_nobody_again(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run.path / "route/answers").iterdir()}
    changed = Run(
        run.path,
        build_recipe(
            run.recipe.model_dump(mode="json", exclude_unset=True)
            | {"route": {"score": "exact", "max_error": 0.2}},
            "test",
        ),
        run.base,
    )
    stale = {item.stage.name: item.reason for item in outlook(changed) if item.reason}
    assert set(stale) == {"route"}
    assert "max_error" in str(stale["route"])
    assert run_pipeline(changed, Progress()) == ["route"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Cascade.load(run.path / "route/cascade.json").policy.max_error == 0.2


def test_an_interrupted_asking_goes_on_with_what_is_missing(run: Run) -> None:
    path = next((run.path / "route/answers").glob("student*"))
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    path.write_bytes(half)  # in the middle of a line, as a kill leaves it
    assert run_pipeline(run, Progress(), again="route") == ["route"]
    kept = half[: half.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(kept)
    texts = [
        {line["key"]: line["text"] for line in map(json.loads, data.splitlines())}
        for data in (whole, path.read_bytes())
    ]
    assert texts[0] == texts[1]


def test_a_recipe_without_a_cascade_keeps_its_fingerprints(run: Run) -> None:
    tree = run.recipe.model_dump(mode="json", exclude_unset=True)
    del tree["route"], tree["splits"]["calibrate"]
    plain = Run(run.path, build_recipe(tree, "test"), run.base)
    settings = next(item.settings for item in outlook(plain) if item.stage.name == "prompts")
    assert settings["splits"] == {"tune": 0.05}
    assert "route" not in [item.stage.name for item in outlook(plain)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"splits": {"calibrate": 0.0}}, "no questions of its own"),
        ({"route": {}}, "does not know how answers are judged"),
        ({"route": {"score": "exact", "max_error": None}}, "nothing to keep to"),
        ({"route": {"score": "perplexity"}}, "does not say whether a written answer is right"),
        ({"route": {"score": "judge"}}, "does not say whether a written answer is right"),
        ({"splits": {"tune": 0.5, "calibrate": 0.5}}, "no question to train on"),
        ({"classify": {}, "quantise": ["int8"]}, "choosing among classes cannot have"),
    ],
)
def test_recipes_that_cannot_work_are_refused(job: Path, change: dict, said: str) -> None:
    tree = yaml.safe_load((job / "recipe.yaml").read_text())
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree | change, "test")
    assert said in str(caught.value)


def test_the_plan_counts_what_is_set_apart_and_misses_a_file(run: Run, job: Path) -> None:
    found = forecast(run)
    assert found.apart == 90
    assert found.questions == len(QUESTIONS) + len(LABELLED) - 90
    tree = yaml.safe_load((job / "recipe.yaml").read_text()) | {
        "route": {"score": "exact", "file": "no.jsonl"}
    }
    lines = plan_lines(Run(job / "none", build_recipe(tree, "test"), job), Asked(100, None, []))
    assert any("no.jsonl" in line for line in lines if "missing" in line)


def test_questions_of_a_file_and_the_question_alone(run: Run, job: Path, tmp_path: Path) -> None:
    tree = run.recipe.model_dump(mode="json", exclude_unset=True)
    tree["route"] = {
        "file": "labelled.jsonl",
        "score": "exact",
        "decide_on": "question",
        "escalate_to": {"model": "teacher"},
    }
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    counts = route.run(StageContext(Run(copy, build_recipe(tree, "test"), job), "route"))
    assert counts["questions"] == counts["with a right answer"] == len(LABELLED)
    cascade = Cascade.load(copy / "route/cascade.json")
    assert set(cascade.scorer.features) <= {"question's length", "nearest lesson", "near lessons"}
    assert cascade.decide(Attempt(LABELLED[0]["prompt"])).why


def test_a_cap_on_money_needs_a_price(run: Run) -> None:
    tree = run.recipe.model_dump(mode="json", exclude_unset=True)
    tree["route"] = {"score": "exact", "max_cost": 2.0}
    dear = Run(run.path, build_recipe(tree, "test"), run.base)
    with pytest.raises(StillroomError, match="not known") as caught:
        run_pipeline(dear, Progress())
    assert "route.max_share" in str(caught.value)
