"""Ship it, ship it with a cascade, or do not: decided from the rows by one rule, and said with its reasons.

The bar is the recipe's `report.keep`. What counts is the lower end of the interval of what is kept of the teacher's score,
on every task with right answers: a student that may have lost more than that is not shipped on luck.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.contracts.records import ResultRow
from stillroom.report.rows import Results, percent

_HALF = 0.5
"""A student that is asked less often than its teacher spares too little to be worth two models."""
SHIP, CASCADE, NOT_YET, NOT = "Ship it", "Ship it with a cascade", "Not on this evidence", "Do not ship it"


@dataclass(frozen=True)
class Decision:
    """What to do, and why."""

    what: str
    why: str

    @property
    def ships(self) -> bool:
        """Whether the student is handed over, alone or with its teacher behind it."""
        return self.what in (SHIP, CASCADE)

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Cascade:
    """The student answers what it is sure of, the teacher the rest."""

    share: float
    """Of the questions, those that the student answers alone."""
    sure: float
    """The confidence from which it does."""
    kept: ResultRow
    """The score of both together over the teacher's."""


@dataclass(frozen=True)
class Fitted:
    """What the route stage found of its cascade, on questions that were set apart for it."""

    sent_on: float
    """Of the questions."""
    kept: float
    """The score of both together over the teacher's."""
    least: float
    """As much of it as is proved: every answer that may be worse, up to the bound, counted as wrong."""


def decide(results: Results, keep: float, fitted: Fitted | None = None) -> Decision | None:
    """The decision on the model that is handed over; None where no question with a right answer was asked of both.

    Args:
        keep: the bar.
        fitted: the run's own cascade, which then stands in the place of what the evaluation makes of the same idea.
    """
    model = results.shipped
    kept = [row for task in results.scored if model and (row := results.find(model, task, "retention"))]
    if not kept or model is None:
        return None
    short = [row for row in kept if _least(row) < keep]
    if not short:
        worst = min(kept, key=_least)
        return Decision(
            SHIP,
            f"it keeps {percent(worst.value)} of the teacher’s score on {worst.task}, at least {percent(_least(worst))} at "
            f"the lower end of the interval, and {percent(keep)} is asked for.",
        )
    lost = "; ".join(
        f"on {row.task} it keeps {percent(row.value)} of the teacher’s score, and maybe as little as {percent(_least(row))}"
        for row in short
    )
    because = f"{lost}, where {percent(keep)} is asked for."
    if fitted is not None and len(short) == 1:
        return _by_fitted(because, fitted, keep)
    plans = [(row, cascade(results, model, row.task, keep)) for row in short]
    if all(plan is not None for _, plan in plans):
        ways = " ".join(_way(row.task, plan) for row, plan in plans if plan is not None)
        return Decision(CASCADE, f"{because} {ways}")
    if all(row.value >= keep for row in short):
        asked = min(row.n for row in short)
        return Decision(NOT_YET, f"{because} {asked:,} questions are too few to be sure: ask more.")
    return Decision(NOT, f"{because} {_no_cascade(results, model, short)}")


def _by_fitted(because: str, fitted: Fitted, keep: float) -> Decision:
    both = f"{percent(fitted.sent_on)} of the questions and keeps {percent(fitted.kept)}, at least {percent(fitted.least)}"
    if fitted.least >= keep:
        return Decision(CASCADE, f"{because} The run’s cascade asks the teacher for {both}.")
    return Decision(NOT, f"{because} The run’s cascade asks the teacher for {both}: not enough either.")


def _no_cascade(results: Results, model: str, short: list[ResultRow]) -> str:
    """Why the teacher's help would not do, or why nobody knows."""
    if all(results.all(model, row.task, "cascade") for row in short):
        return "Asking the teacher whenever the student is in doubt would not help enough."
    if all(results.find(model, row.task, "ece") for row in short):
        return "Whether asking the teacher in doubt would help, `stillroom eval` says; it measures no model again."
    return "Asking the teacher when in doubt is no way out: not every answer has a confidence."


def cascade(results: Results, model: str, task: str, keep: float) -> Cascade | None:
    """The cascade in which the student answers most, of those that keep enough."""
    found = [plan for plan in cascades(results, model, task) if _least(plan.kept) >= keep]
    return max(found, key=lambda plan: plan.share, default=None)


def cascades(results: Results, model: str, task: str) -> list[Cascade]:
    """The cascades that were measured in which the student answers at least half of the questions."""
    sure = {row.at: row.value for row in results.all(model, task, "cascade_from")}
    return [
        Cascade(row.at, sure[row.at], row)
        for row in results.all(model, task, "cascade")
        if row.at in sure and row.at is not None and row.at >= _HALF
    ]


def _way(task: str, plan: Cascade) -> str:
    return (
        f"If the teacher is asked on {task} whenever the student is less than {percent(plan.sure)} sure, the student "
        f"answers {percent(plan.share, 0)} of the questions alone, and both together keep {percent(plan.kept.value)}, at "
        f"least {percent(_least(plan.kept))}."
    )


def _least(row: ResultRow) -> float:
    return row.value if row.low is None else row.low
