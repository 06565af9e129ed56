"""One of two runs that are held together, and a figure that both have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from stillroom.contracts.runfolder import Manifest, Run
from stillroom.report.answered import Answers, read_answers
from stillroom.report.rows import Results, read_results
from stillroom.report.sections import manifests

ABSENT = "–"


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    run: Run
    label: str

    @cached_property
    def results(self) -> Results:
        """Its evaluation's rows."""
        return Results.of(read_results(self.run.folder("evaluate")))

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """Of its finished stages."""
        return manifests(self.run)

    @cached_property
    def scores(self) -> dict[str, str]:
        """How each task's answers are judged."""
        return {task.title: task.score for task in self.run.recipe.evaluate.tasks}

    def answers(self, model: str) -> Answers:
        """What one of its models answered."""
        return read_answers(self.run.folder("evaluate"), model)


@dataclass(frozen=True)
class Figure:
    """A figure of each run as printed, and the numbers; None where a run has none."""

    label: str
    first: str
    second: str
    values: tuple[float | None, float | None]


def figure(label: str, first: float | None, second: float | None, show: Callable[[float], str]) -> Figure:
    """A figure of each run, printed by `show`."""
    one, other = (ABSENT if value is None else show(value) for value in (first, second))
    return Figure(label, one, other, (first, second))
