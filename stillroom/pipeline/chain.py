"""A chain of students, each the teacher of the next: every link is a run of its own inside the run's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence

from stillroom.contracts.loading import build_recipe
from stillroom.contracts.recipe import Recipe, Teacher
from stillroom.contracts.runfolder import Run


def parts(run: Run) -> list[Run]:
    """The runs that a recipe comes to, in their order; the last is that of the folder itself, taught by the link before it.

    Without a chain that is the run as it is. Links lie in chain/NAME of its folder.
    """
    found: list[Run] = []
    teacher = run.recipe.teacher
    for link in run.recipe.chain:
        changes = {"name": f"{run.recipe.name}-{link.name}", "student": link.student}
        changes |= {"chain": [], "route": None}  # only the last student is handed over
        own = {"teach": link.teach or run.recipe.teach, "distil": link.distil or run.recipe.distil}
        recipe = run.recipe.model_copy(update=changes | own | {"teacher": teacher})
        part = Run(run.path / "chain" / link.name, _checked(recipe), run.base)
        found.append(part)
        teacher = _taught_by(part)
    if not found:
        return [run]
    last = run.recipe.model_copy(update={"teacher": teacher, "chain": []})
    return [*found, Run(run.path, _checked(last), run.base, first=found[0].path)]


def waiting(runs: Sequence[Run]) -> list[bool]:
    """Which of the parts wait for the student of the link before them, which is not there yet."""
    return [False, *(not (link.student / "config.json").is_file() for link in runs[:-1])]


def _taught_by(run: Run) -> Teacher:
    return Teacher(model=os.path.relpath(run.student.resolve(), run.base.resolve()))


def _checked(recipe: Recipe) -> Recipe:
    """The recipe with its settings held against each other once more: a link may ask for what its teacher cannot give."""
    return build_recipe(recipe.model_dump(mode="json", exclude_unset=True), f"the chain of {recipe.name}")
