"""A chain of students: each link a run of its own, the teacher of the next."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_rounds import job, settings_of
from tiny_llama import save_tiny

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import load_recipe
from stillroom.contracts.runfolder import Run
from stillroom.pipeline import parts


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def chained(teacher: Path, **changes: Any) -> dict[str, Any]:
    settings = settings_of(teacher, **changes)
    settings["distil"].pop("rounds", None)
    link = {"name": "medium", "student": {"prune": {"layers": 2}}}
    # The questions that were held out, answered: a task of both the link and the last run.
    tasks = [{"score": "number", "name": "sums"}, {"score": "likelihood"}]
    return settings | {
        "chain": [link],
        "quantise": [],
        "evaluate": {"tasks": tasks, "max_new_tokens": 8},
    }


def stillroom(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillroom", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_each_link_is_a_run_and_teaches_the_next(teacher: Path, tmp_path: Path) -> None:
    recipe = job(tmp_path / "job", chained(teacher))
    dry = stillroom("run", recipe, "--runs", tmp_path, "--dry-run")
    assert "waits for it" in dry.stdout, dry.stderr
    assert "known once" in stillroom("plan", recipe, "--runs", tmp_path).stdout
    done = stillroom("run", recipe, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "rounds"
    layers = [
        json.loads((folder / "distil/student/config.json").read_text())["num_hidden_layers"]
        for folder in (run / "chain/medium", run)
    ]
    assert layers == [2, 1]
    for folder in (run / "chain/medium", run):
        assert (folder / "report.html").is_file()
        assert Run.is_run(folder)
    measured = json.loads((run / "evaluate/results.json").read_text())
    assert {row["model"] for row in measured if row["metric"] == "exact"} == {
        "first-teacher",
        "teacher",
        "student",
    }
    first = json.loads((run / "chain/medium/evaluate/results.json").read_text())
    (own,) = (row for row in first if (row["model"], row["metric"]) == ("teacher", "exact"))
    (kept,) = (row for row in measured if (row["model"], row["metric"]) == ("first-teacher", "exact"))
    assert (kept["value"], kept["n"]) == (own["value"], own["n"])
    assert "first teacher" in (run / "report.html").read_text()
    used = json.loads((run / "teach/manifest.json").read_text())["settings"]["teacher"]["model"]
    assert used.endswith("chain/medium/distil/student")
    again = stillroom("run", recipe, "--runs", tmp_path)
    assert again.stderr.count("holds, skipped") == 2 * 7, again.stderr
    # Another seed for the link's own weights is another teacher for the last student.
    changed = chained(teacher)
    changed["chain"][0]["distil"] = {**changed["distil"], "steps": 3}
    recipe.write_text(yaml.safe_dump(changed))
    dry = stillroom("run", recipe, "--runs", tmp_path, "--dry-run")
    assert "distil.steps was 6, is 3" in dry.stdout
    status = stillroom("status", run)
    assert status.stdout.count("taught by") == 2


def test_a_link_that_asks_for_what_its_teacher_cannot_give_is_refused(teacher: Path, tmp_path: Path) -> None:
    settings = chained(teacher)
    settings["chain"][0]["distil"] = {"loss": {"hidden": 1.0}}
    recipe = job(tmp_path / "job", settings)
    run = Run(tmp_path / "run", load_recipe(recipe), recipe.parent)
    with pytest.raises(RecipeError, match="matches the inside of the teacher"):
        parts(run)


def test_two_links_of_one_name_are_refused(teacher: Path, tmp_path: Path) -> None:
    settings = chained(teacher)
    settings["chain"] = [{"name": "medium", "student": {"prune": {"layers": layers}}} for layers in (2, 1)]
    with pytest.raises(RecipeError, match="two links of the chain have one name"):
        load_recipe(job(tmp_path / "job", settings))


def test_an_evaluation_that_its_score_cannot_judge_is_refused_before_anything_is_paid(
    teacher: Path, tmp_path: Path
) -> None:
    settings = settings_of(teacher, evaluate={"tasks": [{"file": "test.jsonl", "score": "json"}]})
    recipe = job(tmp_path / "job", settings)
    item = {"messages": [{"role": "user", "content": "what costs 4"}], "reference": "8"}
    (recipe.parent / "test.jsonl").write_text(json.dumps(item) + "\n")
    refused = stillroom("run", recipe, "--runs", tmp_path)
    assert refused.returncode == 2
    assert "test.jsonl, item 1: the reference is not a JSON object" in refused.stderr
    assert not (tmp_path / "rounds").exists()
