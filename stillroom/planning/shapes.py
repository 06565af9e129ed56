"""The sizes of a recipe's models, read where they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stillroom.contracts.recipe import Prune
from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.planning.sums import Shape


def shapes_of(run: Run) -> tuple[Shape | None, Shape | None]:
    """The teacher's and the student's sizes, None where they cannot be read here.

    Raises:
        ModelError: a model that the recipe names is not there.
    """
    recipe = run.recipe
    teacher = None
    if not recipe.teacher.api:
        found = resolve_model(recipe.teacher.model, run.base)
        teacher = Shape.read(found) if isinstance(found, Path) and found.is_dir() else None
    source = student_source(recipe, run.base)
    student = Shape.read(source) if isinstance(source, Path) else None
    if student and recipe.student.prune:
        student = _cut(student, recipe.student.prune)
    if recipe.student.config:
        student = None
    return teacher, student


def _cut(whole: Shape, prune: Prune) -> Shape:
    """The sizes of what a recipe cuts out of a model; heads take their key-value heads with them."""
    heads = prune.heads or whole.heads
    return replace(
        whole,
        layers=prune.layers or whole.layers,
        hidden=prune.hidden or whole.hidden,
        mlp=prune.mlp or whole.mlp,
        heads=heads,
        kv_heads=max(1, whole.kv_heads * heads // whole.heads),
    )
