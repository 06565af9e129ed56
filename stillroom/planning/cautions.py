"""What speaks against a recipe before it runs, each with the key to change and a value that would do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stillroom.contracts.recipe import Recipe
from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.planning.sums import Shape

_FEW, _LEAST_SHARE = 500, 0.1
"""Lessons under which a student memorises, and a share of the teacher's size under which much is lost (the field's
experience, not a law)."""


def caution_lines(
    run: Run, teacher: Shape | None, student: Shape | None, answers: int, length: float
) -> Iterator[str]:
    """Warnings, a line each, and under each what would do.

    Args:
        run: the run.
        teacher, student: their shapes where they are known.
        answers: how many there will be.
        length: tokens of a lesson.
    """
    recipe = run.recipe
    if teacher and student:
        yield from _gap(recipe, teacher, student)
    yield from _few(recipe, answers)
    yield from _lengths(recipe, student, length)
    yield from _templates(run)


def _gap(recipe: Recipe, teacher: Shape, student: Shape) -> Iterator[str]:
    share = student.parameters / teacher.parameters
    if share >= _LEAST_SHARE:
        return
    yield "  warning: under 10 % of the teacher's parameters the loss by compression becomes severe"
    wanted = _LEAST_SHARE * teacher.parameters
    fixed = student.parameters - student.layers * student.layer_parameters
    layers = -(-(wanted - fixed) // student.layer_parameters)
    if recipe.student.prune and 0 < layers <= teacher.layers:
        yield f"    set student.prune.layers={layers:.0f}"
    else:
        yield f"    take a student.model of {wanted:,.0f} parameters or more, or put one between them with chain"


def _few(recipe: Recipe, answers: int) -> Iterator[str]:
    if answers >= _FEW:
        return
    yield f"  warning: {answers} lessons: under 500 a student memorises examples rather than learns the task"
    more = -(-_FEW * recipe.teach.samples // max(answers, 1)) if answers else 0
    if 1 < more <= 8 * recipe.teach.samples and recipe.teach.temperature > 0:
        yield f"    set teach.samples={more}, or add prompts.expand={{count: {_FEW - answers}}}"
    else:
        yield f"    add questions: prompts.expand={{count: {_FEW - answers}}}"


def _lengths(recipe: Recipe, student: Shape | None, length: float) -> Iterator[str]:
    if length > recipe.distil.max_length:
        yield f"  warning: lessons of {length:,.0f} tokens are longer than distil.max_length and would be left out"
        yield f"    set distil.max_length={_rounded(length)}"
    longest = student.context if student else None
    if not longest:
        return
    settings = [("export.context", recipe.export.context)]
    if (
        "max_length" in recipe.distil.model_fields_set or length > longest
    ):  # as a default it is only a ceiling
        settings.append(("distil.max_length", recipe.distil.max_length))
    for key, value in settings:
        if value > longest:
            yield f"  warning: {key} is {value:,}, the student was made for {longest:,} tokens"
            yield f"    set {key}={longest}"


def _rounded(length: float) -> int:
    """The next power of two that leaves room for lessons twice as long."""
    return 1 << (int(2 * length) - 1).bit_length()


def _templates(run: Run) -> Iterator[str]:
    recipe = run.recipe
    if recipe.teacher.api or recipe.teacher.tokens == "own" or recipe.student.prune:
        return
    teacher, student = resolve_model(recipe.teacher.model, run.base), student_source(recipe, run.base)
    if not (isinstance(teacher, Path) and isinstance(student, Path)) or teacher == student:
        return
    theirs, own = _template(teacher), _template(student)
    if theirs and theirs != own:
        have = "has another chat template than" if own else "has no chat template, unlike"
        yield f"  warning: the student {have} its teacher, which would be heard in words that it was not trained on"
        yield f"    copy the template of {teacher} to {student}/chat_template.jinja if the tokens are the same"


def _template(folder: Path) -> str | None:
    """A model folder's chat template."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None
