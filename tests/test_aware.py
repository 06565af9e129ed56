"""A recipe asks for a file whose weights learn to be rounded: it is made, measured, handed over, and survives a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_pipeline import kill_when, stillroom
from test_simulated import tensors_of
from tiny_llama import save_tiny, write_jsonl
from transformers import AutoModelForCausalLM

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import AwareFile
from stillroom.contracts.runfolder import Run
from stillroom.gguf import export
from stillroom.pipeline import run_pipeline

AWARE = {"steps": 8, "learning_rate": 1e-3}
SUMS = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(40)]


def recipe_of(**changes: Any) -> dict[str, Any]:
    """A student that is a copy of its teacher, of which one file learns."""
    return {
        "name": "tiny",
        "teacher": {"model": "teacher"},
        "student": {"model": "teacher"},
        "prompts": [{"file": "sums.jsonl"}],
        "splits": {"tune": 0.2},
        "teach": {"max_new_tokens": 12},
        "filter": {"truncated": "keep"},
        "distil": {
            "steps": 2,
            "batch_size": 8,
            "micro_batch_size": 8,
            "checkpoint_every": 2,
            "precision": "float32",
        },
        "quantise": [{"kind": "Q4_K_M", "aware": AWARE}, "Q8_0"],
        "evaluate": {"max_new_tokens": 4, "tasks": [{"score": "likelihood"}]},
        **changes,
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_tiny(folder / "teacher", layers=2)
    write_jsonl(folder / "sums.jsonl", SUMS)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of()))
    return folder


@pytest.fixture(scope="module")
def finished(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("runs") / "tiny", build_recipe(recipe_of(), "test"), job)
    run.save_recipe()
    run_pipeline(run, Progress())
    return run


def test_the_file_is_written_measured_and_handed_over(finished: Run) -> None:
    made = finished.path / "quantise"
    names = ["F16", "Q4_K_M", "Q4_K_M-aware", "Q8_0"]
    assert {*made.glob("*.gguf")} == {made / f"student-{name}.gguf" for name in names}
    files = json.loads((made / "files.json").read_text())
    assert [*files] == names
    assert files["Q4_K_M-aware"]["training"]["steps"] == 8
    assert files["Q4_K_M-aware"]["mix"] == files["Q4_K_M"]["mix"]
    measured = {row["model"] for row in json.loads((finished.path / "evaluate/results.json").read_text())}
    assert {"student-Q4_K_M", "student-Q4_K_M-aware", "student-Q8_0"} <= measured
    assert (finished.path / "export/student-Q4_K_M-aware.gguf").is_file()
    assert "student-Q4_K_M-aware" in (finished.path / "report.html").read_text()
    assert run_pipeline(finished, Progress()) == []


def test_the_file_holds_the_weights_of_the_folder_that_was_trained(finished: Run, tmp_path: Path) -> None:
    folder = finished.path / "quantise/aware/Q4_K_M"
    export(folder, tmp_path / "whole.gguf", "F32")
    trained = tensors_of(tmp_path / "whole.gguf")
    for name, values in tensors_of(finished.path / "quantise/student-Q4_K_M-aware.gguf").items():
        assert np.array_equal(values.view(np.uint32), trained[name].view(np.uint32)), name
    student = AutoModelForCausalLM.from_pretrained(finished.student, dtype=torch.float32)
    assert not torch.equal(
        student.model.norm.weight, AutoModelForCausalLM.from_pretrained(folder).model.norm.weight
    )


def test_another_kind_of_file_does_not_train_the_first_one_again(finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(finished.path, copy)
    weights = copy / "quantise/aware/Q4_K_M/model.safetensors"
    stamp = weights.stat().st_mtime_ns
    files = [{"kind": "Q4_K_M", "aware": AWARE}]
    run = Run(copy, build_recipe(recipe_of(quantise=files), "test"), finished.base)
    assert run_pipeline(run, Progress(), until="quantise") == ["quantise"]
    assert weights.stat().st_mtime_ns == stamp
    files = [{"kind": "Q4_K_M", "aware": {**AWARE, "teacher": "book", "lora": {"rank": 2, "dropout": 0.0}}}]
    run = Run(copy, build_recipe(recipe_of(quantise=files), "test"), finished.base)
    assert run_pipeline(run, Progress(), until="quantise") == ["quantise"]
    assert weights.stat().st_mtime_ns != stamp


def test_a_killed_training_ends_in_the_same_file(finished: Run, job: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(finished.path, run)
    for name in ("quantise", "evaluate", "export"):
        shutil.rmtree(run / name)
    command = ["run", job, "--runs", tmp_path, "--until", "quantise"]
    checkpoints = run / "quantise/checkpoints/Q4_K_M-aware"
    assert kill_when(command, lambda: any(checkpoints.glob("checkpoint-*/whole")))
    assert not (run / "quantise/student-Q4_K_M-aware.gguf").exists()
    done = stillroom(*command)
    assert done.returncode == 0, done.stderr
    for name in ("student-Q4_K_M-aware.gguf", "aware/Q4_K_M/blocks.safetensors"):
        assert (run / "quantise" / name).read_bytes() == (finished.path / "quantise" / name).read_bytes()


def test_names_of_files() -> None:
    recipe = build_recipe(recipe_of(quantise=["F16", {"kind": "Q8_0"}, "Q8_0"]), "test")
    assert recipe.files == ["F16", "Q8_0", "Q8_0-aware"]
    assert recipe.handed_over == "F16"
    assert build_recipe(recipe_of(), "test").handed_over == "Q4_K_M-aware"
    assert build_recipe(recipe_of(quantise=[]), "test").handed_over is None
    assert recipe.aware_files == [AwareFile(kind="Q8_0")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantise": [{"kind": "Q4_K_M", "aware": {"rate": 1}}]}, "quantise.0.aware.rate"),
        ({"quantise": [{"kind": "F16", "aware": AWARE}]}, "F16 has nothing that weights could learn"),
        ({"quantise": [{"kind": "int8"}]}, "int8 is for classifiers"),
        ({"export": {"draft": {"kind": "int8"}}}, "export.draft.kind: int8 is for classifiers"),
        ({"evaluate": {"teacher_files": ["int8"]}}, "evaluate.teacher_files: int8 is for classifiers"),
        ({"evaluate": {"teacher_files": ["Q8_0", "Q8_0"]}}, "names a kind twice"),
        ({"evaluate": {"teacher_files": ["Q8_0"]}, "teacher": {"model": "t.gguf"}}, "can be quantised"),
        (
            {"evaluate": {"teacher_files": ["Q8_0"]}, "classify": {"labels": 2}},
            "cannot have evaluate.teacher_files",
        ),
        ({"quantise": [{"kind": "Q8_0"}, {"kind": "Q8_0", "aware": AWARE}]}, "would have one name"),
        ({"quantise": [{"kind": "Q8_0", "aware": {"lora": {"rank": 2}}}]}, "set dropout to 0"),
        (
            {
                "quantise": [{"kind": "Q8_0", "aware": {"teacher": "book"}}],
                "teach": {"signal": {"kind": "none"}},
                "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
            },
            "there is no book",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_recipe(recipe_of(**changes), "test")
