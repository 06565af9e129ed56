"""Whose tokens and whose weights a recipe starts from. No torch here."""

from __future__ import annotations

from pathlib import Path

from stillroom.contracts.recipe import Recipe, Teacher
from stillroom.models.references import digest_of, resolve_model


def student_source(recipe: Recipe, base: Path) -> Path | str:
    """The model that the student's weights or shape, and its tokenizer, come from.

    Raises:
        ModelError: there is none.
    """
    student = recipe.student
    named = student.model or (student.prune.source if student.prune else None)
    return resolve_model(named or recipe.teacher.model, base)


def teacher_identity(teacher: Teacher, base: Path) -> str:
    """What the answers' keys say of who answers: the endpoint of an API, or the digest of a local model.

    Raises:
        ModelError: there is no such local model.
    """
    return teacher.api or digest_of(teacher.model, base)
