"""What a run has cost in floating-point operations: training, the teacher, and what the student wrote itself.

For benchmarks/modes.py. Counted from what lies in the run's folder, not from what its recipe promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.recipe.schedule import peak
from stillroom.contracts.records import Lesson, from_line
from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.rendering import Renderer


def training_flops(parameters: int, tokens: float) -> float:
    """Two for each parameter and token forward, four backward (Kaplan et al., arXiv 2001.08361, section 2.1).

    All weights count, the tied embedding once, since it is a product at the output; attention's own products, a few
    hundredths here, do not.
    """
    return 6 * parameters * tokens


def forward_flops(parameters: int, tokens: float) -> float:
    """Of one pass forward, or of writing as many tokens with a cache: likewise."""
    return 2 * parameters * tokens


def weights(folder: Path, layers: int | None = None) -> int:
    """Parameters of a model folder; with so many of its layers, which are of one size, instead of all."""
    total = 0
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            count = int(np.prod(file.get_slice(name).get_shape()))
            if layers is None or ".layers." not in name:
                total += count
            elif ".layers.0." in name:
                total += layers * count
    return total


def lesson_tokens(folder: Path, split: str | None = None) -> list[int]:
    """The length of each lesson of a run."""
    run = Run.open(folder)
    renderer = Renderer.load(student_source(run.recipe, run.base))
    lessons = (from_line(Lesson, line) for line in read_lines(folder / "filter" / "lessons.jsonl"))
    return [len(renderer.lesson(one.messages).ids) for one in lessons if split in (None, one.split)]


@dataclass
class Bill:
    """FLOPs: of training, of the teacher, and what the student spent on writing or hearing itself."""

    training: float = 0.0
    teacher: float = 0.0
    own: float = 0.0


def bill(*runs: Run) -> Bill:
    """What finished runs have cost together."""
    total = Bill()
    for run in runs:
        _add_distilling(total, run)
        if run.recipe.align:
            _add_aligning(total, run)
    return total


def _add_distilling(total: Bill, run: Run) -> None:
    recipe, distil = run.recipe, run.recipe.distil
    counts = run.manifest("distil").counts  # type: ignore[union-attr]  # it has run
    student, teacher = weights(run.path / "distil" / "student"), weights(run.locate(recipe.teacher.model))
    steps, length = counts["models"]["student"]["steps"], counts["tokens"] / counts["lessons"]
    written, greedy, share = _written(run), 0.0, 0.0
    if distil.rounds:
        greedy = sum(map(_answer_tokens, run.path.glob("distil/rounds/*/held-out.jsonl")))
        share = distil.rounds.share * (1 - distil.rounds.start)
    own_length = sum(written) / len(written) if written else 0.0
    tokens = steps * distil.batch_size * ((1 - share) * length + share * own_length)
    hears = _hears(recipe)
    total.training += training_flops(student + teacher * (hears == "online"), tokens)
    if recipe.prompts[0].answers == "teacher":
        answers = read_lines(run.path / "teach" / "answers.jsonl")
        asked = sum(line.get("prompt_tokens", 0) + line.get("completion_tokens", 0) for line in answers)
        total.teacher += forward_flops(teacher, asked)
    heard = {"book": sum(lesson_tokens(run.path)) + sum(written), "live": tokens}.get(hears, 0)
    total.teacher += forward_flops(teacher, heard)
    total.own += forward_flops(student, sum(written) + greedy + tokens * (hears == "self"))


def _add_aligning(total: Bill, run: Run) -> None:
    student, renderer = weights(run.student), Renderer.load(run.student)
    pairs = [line for line in read_lines(run.path / "align" / "pairs.jsonl") if line["split"] == "train"]
    sides = (
        renderer.lesson([*pair["prompt"], *pair[side]]) for pair in pairs for side in ("chosen", "rejected")
    )
    tokens = sum(len(side.ids) for side in sides) * run.recipe.align.epochs  # type: ignore[union-attr]
    total.training += training_flops(student, tokens)
    # The student has answered every lesson's question, and is the reference too.
    total.own += forward_flops(student, sum(lesson_tokens(run.path)) + tokens)


def _hears(recipe: Recipe) -> str:
    """Whom the student listens to while it trains."""
    loss = recipe.distil.loss
    heard = peak(loss.soft) > 0 or any(peak(weight) > 0 for weight in loss.matched.values())
    return recipe.distil.teacher if heard else "nobody"


def _written(run: Run) -> list[int]:
    """Lengths of what the student wrote in rounds, questions included."""
    files = sorted(run.path.glob("distil/rounds/*/written.jsonl"))
    return [len(line["prompt"]) + len(line["answer"]) for file in files for line in read_lines(file)]


def _answer_tokens(file: Path) -> int:
    return sum(len(line["prompt"]) + len(line["answer"]) for line in read_lines(file))
