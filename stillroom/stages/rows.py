"""The lessons of a run as rows of tokens: what stages that train share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Lesson, from_line
from stillroom.lessons.teach.asking import teacher_weights
from stillroom.models.origins import student_source
from stillroom.models.rendering import Rendered, Renderer
from stillroom.stages.context import StageContext
from stillroom.training.batches import MemoryRows, RowSource
from stillroom.training.bookrows import BookRows


@dataclass(frozen=True)
class Taught(Rendered):
    """A lesson as tokens, and the source of its question."""

    source: str


class LessonRows:
    """The lessons of a run in the student's tokens, with the signals of its book or without."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.recipe = context, context.recipe
        self.source = student_source(self.recipe, context.run.base)
        self.renderer = Renderer.load(self.source, trust_remote_code=self.recipe.student.trust_remote_code)
        self.too_long: Counter[str] = Counter()
        self.without_signal = 0

    def lessons(self, split: str) -> Iterator[Rendered]:
        """The lessons of a split as tokens; those over distil.max_length are left out and counted."""
        too_long = 0
        for line in read_lines(self.context.run.need("filter") / "lessons.jsonl"):
            lesson = from_line(Lesson, line)
            if lesson.split == split:
                rendered = self.renderer.lesson(lesson.messages, lesson.complete, lesson.tools)
                if len(rendered.ids) > self.recipe.distil.max_length:
                    too_long += 1
                else:
                    yield Taught(rendered.ids, rendered.mask, lesson.source)
        self.too_long[split] = too_long  # once read to the end, however often

    def rows(self, lessons: Iterator[Rendered], *, signals: bool) -> RowSource:
        """Rows with the signals of the run's book, or without."""
        if not signals:
            return MemoryRows((row.ids, row.mask) for row in lessons)
        folder, others = self.context.run.need("teach"), self.recipe.more_teachers
        book = BookRows.open(
            folder / "signals",
            lessons,
            others=[folder / f"signals-{number}" for number in range(2, 2 + len(others))],
            weights=self._weights if others else None,
            tokenizer_hash=self.renderer.tokenizer_hash,
            temperature=self.recipe.capture_temperature,
        )
        self.without_signal += book.missing
        return book

    def _weights(self, row: Rendered) -> list[float]:
        """How much each teacher counts for a lesson."""
        assert isinstance(row, Taught)
        return teacher_weights(self.recipe, row.source)
