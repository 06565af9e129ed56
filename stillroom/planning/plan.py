"""What a run would do and what it needs, before anything runs.

Today: parameters, memory of training, size of the book, disk. Minutes and money are not estimated yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stillroom.contracts.errors import DataError
from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.planning.machine import cores, memory_bytes, size
from stillroom.planning.sums import Shape

_ANSWER_TOKENS = 100
"""A guess at an answer's length where nothing has been answered yet."""


def plan_lines(run: Run) -> Iterator[str]:
    """The plan, a line each.

    Raises:
        DataError, ModelError: a file or model that the recipe names is not there.
    """
    recipe = run.recipe
    questions = sum(_lines(run.locate(source.file), source.limit) for source in recipe.prompts)
    yield f"run            {run.path}"
    yield f"questions      {questions:,} x {recipe.teach.samples} answers from {recipe.teacher.model}"
    teacher, student = _shapes(run)
    if teacher:
        yield f"teacher        {teacher.parameters:,} parameters"
    if student:
        share = f", {student.parameters / teacher.parameters:.0%} of the teacher's" if teacher else ""
        yield f"student        {student.parameters:,} parameters{share}"
        if teacher and student.parameters < 0.1 * teacher.parameters:
            yield "  warning: under 10 % of the teacher's parameters the loss by compression becomes severe"
        need = student.training_bytes(recipe.distil.micro_batch_size, 2 * _ANSWER_TOKENS)
        yield f"training       about {size(need)} at {recipe.distil.micro_batch_size} lessons of 200 tokens at once"
        if need > memory_bytes():
            yield f"  warning: this machine has {size(memory_bytes())}; lower distil.micro_batch_size"
    answers = questions * recipe.teach.samples
    if recipe.teach.signal.kind != "none":
        book = answers * _ANSWER_TOKENS * recipe.teach.signal.bytes_per_token
        yield f"lesson book    at most {size(book)} if answers have {_ANSWER_TOKENS} tokens"
    if answers < 500:
        yield f"  warning: {answers} lessons: under 500 a student memorises examples rather than learns the task"
    steps = recipe.distil.steps or round(recipe.distil.epochs * answers / recipe.distil.batch_size)
    yield f"steps          {steps:,} of {recipe.distil.batch_size} lessons; as many for each of {_listed(recipe.baselines)}"
    yield f"files          {_listed(['F16', *recipe.quantise])}"
    yield f"this machine   {cores()} cores, {size(memory_bytes())} of memory, {size(shutil.disk_usage('.').free)} of disk"


def _lines(path: Path, limit: int | None) -> int:
    try:
        file = path.open("rb")
    except OSError:
        raise DataError(f"{path} cannot be read", do="check the path; it is relative to the recipe") from None
    with file:
        count = sum(1 for line in file if line.strip())
    return min(count, limit) if limit else count


def _shapes(run: Run) -> tuple[Shape | None, Shape | None]:
    """The teacher's and the student's sizes, None where they cannot be read here."""
    recipe = run.recipe
    teacher = None
    if not recipe.teacher.api:
        found = resolve_model(recipe.teacher.model, run.base)
        teacher = Shape.read(found) if isinstance(found, Path) and found.is_dir() else None
    source = student_source(recipe, run.base)
    student = Shape.read(source) if isinstance(source, Path) else None
    if student and recipe.student.prune:
        student = replace(student, layers=recipe.student.prune.layers)
    if recipe.student.config:
        student = None
    return teacher, student


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "no baseline"
