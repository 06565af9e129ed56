"""The same command under a launcher: two processes train together and come to what one comes to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from test_classify import RECIPE as CLASSES
from test_rounds import job, settings_of
from tiny_bert import questions, write_csv, write_encoder
from tiny_llama import save_tiny

RANKS = 2
RANKED = [
    "--num_processes",
    str(RANKS),
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def of_accelerate(folder: Path) -> list[str]:
    return [*ACCELERATE, "--multi_gpu", *RANKED, "--main_process_port", "0"]


def of_torchrun(folder: Path) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]


def of_mpi(folder: Path) -> list[str]:
    if not shutil.which("mpirun"):
        pytest.skip("mpirun is not installed")
    (folder / "hosts").write_text(f"localhost slots={RANKS}\n")
    return [
        *ACCELERATE,
        "--cpu",
        *RANKED,
        "--mpirun_hostfile",
        str(folder / "hosts"),
        "--main_process_port",
        "29671",
    ]


def in_rounds(folder: Path) -> Path:
    """A round, then pairs against the student's own answers; a baseline beside."""
    teacher = save_tiny(folder / "teacher", seed=3)
    align = {"pairs": "teacher", "epochs": 1, "batch_size": 4, "micro_batch_size": 2}
    settings = settings_of(teacher, align=align, quantise=[], baselines=["before", "answers-only"])
    settings["distil"]["rounds"]["count"] = 1
    return job(folder, settings)


def with_adapters(folder: Path) -> Path:
    """Low-rank adapters, taught from the book, and a file that learns."""
    teacher = save_tiny(folder / "teacher", seed=3)
    aware = [{"kind": "Q8_0", "aware": {"steps": 1, "learning_rate": 1e-3, "teacher": "book"}}]
    lora = {"rank": 2, "dropout": 0}  # each process drops out others
    settings = settings_of(teacher, student__lora=lora, baselines=[], quantise=aware)
    del settings["distil"]["rounds"]
    return job(folder, settings)


def among_classes(folder: Path) -> Path:
    """A teacher that learns the classes first, and a student that learns from it."""
    write_encoder(folder / "encoder")
    rows = questions(160)
    write_csv(folder / "train.csv", rows[:120])
    write_csv(folder / "test.csv", rows[120:])
    loss = {"hard": 0.4, "soft": 0.4, "hidden": 0.2}
    distil = CLASSES["distil"] | {"epochs": 2, "teacher": "live", "loss": loss}
    classify = {"prepare": CLASSES["classify"]["prepare"] | {"epochs": 2}}
    recipe = CLASSES | {"distil": distil, "classify": classify, "baselines": ["before"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def trained(recipe: Path, until: str, *launcher: str) -> Path:
    """The run of a recipe, by one process or under a launcher."""
    runs = recipe.parent / ("launched" if launcher else "alone")
    python = [] if launcher else [sys.executable]
    command = [
        *launcher,
        *python,
        "-m",
        "stillroom",
        "run",
        str(recipe),
        "--runs",
        str(runs),
        "--until",
        until,
    ]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # as containers do
    environment = os.environ | as_root
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    return run


def figures(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Every line of losses of a run; how long a step took is left out."""
    return {
        str(path.relative_to(run)): [
            {
                key: value
                for key, value in json.loads(line).items()
                if "second" not in key and "runtime" not in key
            }
            for line in path.read_text().splitlines()
        ]
        for path in run.rglob("*metrics.jsonl")
    }


def same(one: Path, two: Path) -> None:
    """Losses and weights of two runs are equal, and nothing half-done lies about."""
    alone, together = figures(one), figures(two)
    assert alone.keys() == together.keys()
    for name, lines in alone.items():
        for line, other in zip(lines, together[name], strict=True):
            assert other == pytest.approx(line, rel=1e-4, abs=1e-6), name
    models = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    assert models
    assert models == sorted(path.relative_to(two) for path in two.rglob("model.safetensors"))
    for name in models:
        theirs, mine = load_file(two / name), load_file(one / name)
        apart = {key: ((theirs[key] - mine[key]).abs() > 2e-5).float().mean().item() for key in mine}
        # What is rounded lies on one side of a half or on the other; a block's scale that changes sides moves all of it.
        assert max(apart.values()) <= (0.05 if "aware" in name.parts else 0), (name, apart)
    assert not list(two.rglob(".*.partial"))
    assert not list(two.rglob("checkpoints/*"))


@pytest.mark.parametrize(
    ("make", "until", "launcher"),
    [(in_rounds, "align", of_accelerate), (among_classes, "distil", of_torchrun)],
)
def test_two_processes_come_to_what_one_comes_to(
    make: Any, until: str, launcher: Any, tmp_path: Path
) -> None:
    recipe = make(tmp_path)
    one, two = trained(recipe, until), trained(recipe, until, *launcher(tmp_path))
    same(one, two)


@pytest.mark.parametrize("launcher", [of_torchrun, of_mpi])
def test_a_run_of_one_process_goes_on_with_two(launcher: Any, tmp_path: Path) -> None:
    recipe = with_adapters(tmp_path)
    one = trained(recipe, "quantise")
    two = tmp_path / "launched" / one.name
    shutil.copytree(one, two)
    shutil.rmtree(two / "quantise")
    trained(recipe, "quantise", *launcher(tmp_path))
    same(one, two)
    shutil.rmtree(two / "distil")
    trained(recipe, "distil", *launcher(tmp_path))
    shutil.rmtree(two / "quantise"), shutil.rmtree(one / "quantise")
    same(one, two)


def test_what_one_of_them_cannot_do_ends_them_all(tmp_path: Path) -> None:
    recipe = with_adapters(tmp_path)
    settings = yaml.safe_load(recipe.read_text())
    settings["distil"]["max_length"] = 16  # nothing is left to train on
    recipe.write_text(yaml.safe_dump(settings))
    command = [
        *of_torchrun(tmp_path),
        "-m",
        "stillroom",
        "run",
        str(recipe),
        "--runs",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode
    assert done.stderr.count("Traceback") <= 1  # the launcher's own
    assert "do: " in done.stderr
