"""In a process of its own between the rounds: the teacher scores what the student wrote.

Teacher and student are never in memory together, and what either took is free again when its process ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.contracts.child import Advance
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.recipe import Recipe
from stillroom.lessons.teach.capture import capture_rows
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import student_source
from stillroom.models.rendering import Renderer
from stillroom.models.writing import written_rows


def score(job: str, advance: Advance) -> dict[str, int]:
    """Have the teacher tell what it thinks of each token that a student wrote, into a book.

    Args:
        job: JSON: `recipe`, `base` (the folder that its paths are relative to), `written` (a file of `write`), `book`.
        advance: told each row.
    """
    settings = json.loads(job)
    recipe, base = Recipe.model_validate(settings["recipe"]), Path(settings["base"])
    tokenizer = student_source(recipe, base)
    renderer = Renderer.load(tokenizer, trust_remote_code=recipe.student.trust_remote_code)
    sizes = {"batch_size": recipe.teach.batch_size, "concurrency": recipe.teach.concurrency}
    teacher = WhenAsked(recipe.teacher.model, lambda: open_teacher(recipe.teacher, base, tokenizer, **sizes))
    rows = written_rows(Path(settings["written"]), recipe.distil.max_length)
    book = capture_rows(Path(settings["book"]), recipe, rows, teacher, renderer, _Told(advance))
    return {"signals": book.signals}


class _Told(Progress):
    """Passes every meter's steps on."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        """As `Progress.meter`."""
        yield _Passing(self._advance)


class _Passing(Meter):
    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """As `Meter.advance`."""
        self._advance(amount, note)
