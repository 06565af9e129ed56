"""What the teacher cost, what its requests would cost, and after how many of them the student has paid for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stillroom.contracts.recipe import Recipe
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.models.endpoint import base_url
from stillroom.models.teachers import Price, price_of
from stillroom.report.rows import Results, duration, number
from stillroom.report.sections import Fact

_MILLION = 1_000_000


@dataclass(frozen=True)
class Money:
    """US dollars, and what they are for; None where it is not known."""

    spent: float
    """On answers of the teacher and verdicts of a judge."""
    machine: float | None
    """The stages' time at the price of an hour."""
    teacher: float | None
    """A million requests at the teacher's price."""
    student: float | None
    """A million requests at the price of an hour; 0 where no price of an hour was given."""
    hours: dict[str, float]
    """What a million requests take by model, all together in batches."""
    tokens: tuple[float, float]
    """Of a request and its answer, on average over the teacher's answers."""

    @property
    def saved(self) -> float | None:
        """By a million requests that the student answers."""
        return None if self.teacher is None else self.teacher - (self.student or 0.0)

    @property
    def break_even(self) -> float | None:
        """Requests after which the student has paid for its making; None where it never does, or nobody knows."""
        if self.saved is None or self.saved <= 0:
            return None
        return (self.spent + (self.machine or 0.0)) / self.saved * _MILLION


def money(run: Run, results: Results, found: dict[str, Manifest]) -> Money | None:
    """The sums of a run; None where its teacher was not asked.

    Raises:
        DataError: the recipe's file of prices is not readable.
    """
    teach = found["teach"].counts if "teach" in found else {}
    answers = teach.get("answers") or 0
    if not answers:
        return None
    asked, answered = (teach.get(f"{kind} tokens", 0) / answers for kind in ("prompt", "completion"))
    price = _price(run.recipe, run)
    hours = {model: _hours(results, model, answered) for model in results.models}
    known = {model: value for model, value in hours.items() if value is not None}
    rate = run.recipe.report.dollars_an_hour
    own = known.get(results.shipped or "")
    seconds = sum(manifest.seconds for manifest in found.values())
    return Money(
        spent=_dollars(teach)
        + sum(_dollars(_counts(found, stage).get("judge")) for stage in ("filter", "evaluate")),
        machine=None if rate is None else rate * seconds / 3600,
        teacher=price.cost(asked, answered) * _MILLION if price else None,
        student=None if rate is None or own is None else own * rate,
        hours=known,
        tokens=(asked, answered),
    )


def money_facts(sums: Money, shipped: str | None) -> Iterator[Fact]:
    """The sums for a reader."""
    yield Fact("Spent on the teacher’s answers and a judge", dollars(sums.spent))
    if sums.machine is not None:
        yield Fact("This machine’s time for all stages", dollars(sums.machine))
    asked, answered = sums.tokens
    yield Fact(
        "A request, on average", f"{number(round(asked))} tokens, answered with {number(round(answered))}"
    )
    if sums.teacher is not None:
        yield Fact("A million requests to the teacher", dollars(sums.teacher))
    if sums.student is not None:
        yield Fact("A million requests to the student", dollars(sums.student))
    for name in dict.fromkeys(("teacher", shipped or "student")):
        if name in sums.hours:
            who = "teacher" if name == "teacher" else "student"
            yield Fact(f"A million requests take the {who} here", duration(3600 * sums.hours[name]))
    if sums.saved is not None:
        yield Fact("Saved by a million requests", dollars(sums.saved))
    if sums.break_even is not None:
        yield Fact("Paid for itself after", f"{number(round(sums.break_even))} requests")


def money_sentence(sums: Money) -> str | None:
    """The same in one sentence; None where the teacher has no price."""
    if sums.saved is None:
        return None
    if sums.saved <= 0:
        return "At the price of an hour that was given, the student costs as much as its teacher."
    text = f"A million requests that the student answers save {dollars(sums.saved)} of the teacher’s price"
    spent = sums.spent + (sums.machine or 0.0)
    if sums.break_even and spent:
        return f"{text}; the {dollars(spent)} that it took to make are back after {number(round(sums.break_even))} requests."
    return f"{text}."


def dollars(amount: float) -> str:
    """US dollars, the small ones exactly enough to be told from nothing."""
    return (
        f"${amount:,.0f}"
        if amount >= 100
        else f"${amount:,.2f}"
        if amount >= 0.01 or not amount
        else f"${amount:.2g}"
    )


def _price(recipe: Recipe, run: Run) -> Price | None:
    """What an API teacher costs; a local one costs its machine's time, which nobody bills."""
    teacher = recipe.teacher
    if not teacher.api:
        return None
    return price_of(
        teacher.model, base_url(teacher.api), run.locate(teacher.prices) if teacher.prices else None
    )


def _hours(results: Results, model: str, answered: float) -> float | None:
    tokens, questions = (
        results.value(model, "speed", f"{unit}_per_second") for unit in ("tokens", "questions")
    )
    seconds = answered / tokens if tokens else 1 / questions if questions else 0.0
    return seconds * _MILLION / 3600 or None


def _dollars(counts: Any) -> float:
    return float((counts or {}).get("dollars") or 0.0)


def _counts(found: dict[str, Manifest], stage: str) -> dict[str, Any]:
    return found[stage].counts if stage in found else {}
