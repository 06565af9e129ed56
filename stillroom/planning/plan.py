"""What a run would do and what it needs, before anything runs: requests and money, memory, size of the book, disk.

The minutes of training, of a local teacher and of the evaluation are not estimated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.planning.machine import cores, memory_bytes, size
from stillroom.planning.sums import Shape

_ANSWER_TOKENS = 100
"""A guess at an answer's length where nothing has been answered yet."""
_API_BYTES = 70
"""Of a token's signal from an API's 20 likeliest: ids of up to 18 bits, a byte for each weight, the bucket."""


@dataclass(frozen=True)
class Asked:
    """What asking the teacher comes to, which whoever reads the sources knows.

    `lines` are for the reader: what each is about, and what it says. `mean_tokens` is that of the answers so far, None
    where there are none.
    """

    answers: int
    mean_tokens: float | None
    lines: Sequence[tuple[str, str]]


def plan_lines(run: Run, asked: Asked) -> Iterator[str]:
    """The plan, a line each.

    Raises:
        DataError, ModelError: a file or model that the recipe names is not there.
    """
    recipe = run.recipe
    yield f"run            {run.path}"
    for label, text in asked.lines:
        yield f"{label:<14} {text}"
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
    answers = asked.answers
    if recipe.teach.signal.kind != "none":
        tokens = asked.mean_tokens or _ANSWER_TOKENS
        book = answers * tokens * (_API_BYTES if recipe.teacher.api else recipe.teach.signal.bytes_per_token)
        why = "as those so far have" if asked.mean_tokens else "a guess"
        yield f"lesson book    at most {size(book)} if answers have {tokens:,.0f} tokens ({why})"
    if answers < 500:
        yield f"  warning: {answers} lessons: under 500 a student memorises examples rather than learns the task"
    steps = recipe.distil.steps or round(recipe.distil.epochs * answers / recipe.distil.batch_size)
    yield f"steps          {steps:,} of {recipe.distil.batch_size} lessons; as many for each of {_listed(recipe.baselines)}"
    yield f"files          {_listed(['F16', *recipe.quantise])}"
    yield f"this machine   {cores()} cores, {size(memory_bytes())} of memory, {size(shutil.disk_usage('.').free)} of disk"


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
