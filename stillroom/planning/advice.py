"""Whether to distil at all: the ways of doing a task, what each costs over a year, and where that turns.

Every figure is a sum over `Needs`, whose fields say which of them were assumed. Costs are straight lines over the number of
requests, so that where two ways cost the same is a division.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from stillroom.models.teachers import Price
from stillroom.planning.families import MODELS, Card
from stillroom.planning.fitting import Fit, best_kind, largest

Width = Literal["narrow", "medium", "wide"]
Stability = Literal["stable", "drifting", "moving"]

DAYS = 365
_SECONDS = 86_400
_LESSONS = {"narrow": 5_000, "medium": 15_000, "wide": 50_000}
"""Examples that teach a task: 5,000 to 50,000 are usual for responses."""
_LEAST = {"narrow": 0.4e9, "medium": 1.2e9, "wide": 7e9}
"""Parameters of the smallest student that is tried."""
_STUDENT_ERROR = {"narrow": 0.04, "medium": 0.10, "wide": 0.25}
_LARGER_ERROR = {"narrow": 0.07, "medium": 0.10, "wide": 0.15}
"""Answers worse than the large model's, as assumed before anything is measured: of a student that was taught the task, and
of a model that was only told what to do."""
_LARGER = 6e9
"""Parameters of the smallest model that counts as a larger one."""
_TEACHINGS = {"stable": 1, "drifting": 4, "moving": 26}
"""How often in a year the student is taught."""
_HOURS = {
    "prompt": 8.0,
    "quantise": 8.0,
    "distil": 24.0,
    "again": 4.0,
    "cascade": 8.0,
    "agent": 24.0,
    "rag": 16.0,
}
"""Somebody's hours until it runs: of each way, of teaching again, and on top for a cascade, agent or search."""
_LEARNING = 6 * 3
"""Floating-point operations a parameter and token of a training of three passes (6 N D)."""
_API_FIRST, _API_SPEED = 0.5, 80.0
"""Seconds until an API's first token, and tokens a second from there; an assumption, no provider promises any."""


@dataclass(frozen=True)
class Needs:
    """What a task asks for; the defaults are assumptions, and `assumed` names them to the reader.

    Args:
        width: how much of the world the task touches.
        stability: how often it changes.
        volume: requests a day.
        latency: seconds that an answer may take.
        card: what models run on.
        private: whether data may not leave.
        error: share of answers that may be worse than the large model's: the quality bar.
        budget: dollars that the first year may cost.
        prompt, answer: tokens of a request.
        facts: tokens of passages that are looked up and put before each request; 0: nothing is looked up.
        steps: calls that one request takes, of which one is the hard one.
        price: of the large model that is asked through an API.
        api_seconds: that it takes for an answer; None: by its length.
        teaches: whether its terms let its answers train another model.
        student_error, larger_error: share of answers worse than the large model's, of a student and of a larger model
            that runs at home; None: by width.
        card_price: dollars, 0 where it is there.
        power: dollars a kilowatt-hour.
        hourly: dollars an hour of somebody's work.
        given: names of what the reader gave.
    """

    price: Price
    card: Card
    width: Width = "narrow"
    stability: Stability = "stable"
    volume: float = 1000.0
    latency: float = 10.0
    private: bool = False
    error: float = 0.05
    budget: float = float("inf")
    prompt: float = 600.0
    answer: float = 150.0
    facts: float = 0.0
    steps: int = 1
    student_error: float | None = None
    larger_error: float | None = None
    card_price: float = 0.0
    api_seconds: float | None = None
    power: float = 0.30
    hourly: float = 60.0
    teaches: bool = True
    given: frozenset[str] = frozenset()

    @property
    def read(self) -> float:
        """Tokens that a model reads for one call."""
        return self.prompt + self.facts

    @property
    def context(self) -> int:
        """Tokens whose keys and values are held for one call."""
        return 1 << (int(self.read + self.answer) - 1).bit_length()

    @property
    def asked(self) -> float:
        """Seconds of one answer through the API."""
        return _API_FIRST + self.answer / _API_SPEED if self.api_seconds is None else self.api_seconds

    @property
    def wrong(self) -> tuple[float, float]:
        """The errors of a student and of a larger model at home; a student learns the errors of who taught it, too."""
        larger = _LARGER_ERROR[self.width] if self.larger_error is None else self.larger_error
        if self.student_error is not None:
            return self.student_error, larger
        own = _STUDENT_ERROR[self.width]
        return (1 - (1 - own) * (1 - larger) if self.home_taught else own), larger

    @property
    def home_taught(self) -> bool:
        """Whether a larger model at home must be the teacher."""
        return self.private or not self.teaches


@dataclass(frozen=True)
class Way:
    """One way of doing the task.

    Args:
        name: what it is called.
        what: which models do it.
        fixed: dollars of the first year, whatever the volume.
        each: dollars a request.
        sums: how both came about.
        against: why it will not do; empty where it does.
    """

    name: str
    what: str
    fixed: float
    each: float
    sums: tuple[str, ...]
    against: tuple[str, ...] = field(default=())

    def year(self, volume: float) -> float:
        """Dollars of the first year at so many requests a day."""
        return self.fixed + self.each * volume * DAYS


def escalated(wrong: float, allowed: float) -> float:
    """The least share of requests that must go on to a better model for what stays to be wrong as rarely as allowed.

    Of a share 1 - e that is answered, all errors found first: wrong - e <= allowed * (1 - e).
    """
    return max(0.0, (wrong - allowed) / (1 - allowed))


def ways(needs: Needs) -> list[Way]:
    """Every way with its costs, those that will not do with their reasons."""
    student, larger = _student(needs), _larger(needs)
    found = [_prompt(needs)]
    if larger:
        found.append(_quantise(needs, larger))
    if student:
        found.append(_distil(needs, student))
        found.append(_cascade(needs, student))
        if needs.steps > 1:
            found.append(_agent(needs, student))
        if both := _both(needs, student):
            found.append(both)
    return found


def advised(found: Sequence[Way], needs: Needs) -> Way | None:
    """The cheapest way that will do."""
    return min(
        (way for way in found if not way.against), key=lambda way: way.year(needs.volume), default=None
    )


def _student(needs: Needs) -> Fit | None:
    """The smallest model that is tried as a student of a task so wide, whole on the card."""
    least = sorted(
        (shape.parameters, name) for name, shape in MODELS.items() if shape.parameters >= _LEAST[needs.width]
    )
    return next((fit for _, name in least if (fit := best_kind(name, needs.card, needs.context))), None)


def _larger(needs: Needs) -> Fit | None:
    """The largest model that fits whole and keeps up; the largest that fits where none does."""
    names = [name for name, shape in MODELS.items() if shape.parameters >= _LARGER]
    fits = [fit for name in names if (fit := best_kind(name, needs.card, needs.context))]
    quick = [
        fit for fit in fits if not any(_quick(needs, needs.steps * fit.seconds(needs.read, needs.answer)))
    ]
    return max(quick or fits, key=lambda fit: MODELS[fit.model].parameters, default=None)


def _hours(needs: Needs, *kinds: str) -> tuple[float, str]:
    """Dollars of work, and the sum."""
    kinds = (*kinds, "rag") if needs.facts else kinds
    hours = sum(_HOURS[kind] for kind in kinds)
    return hours * needs.hourly, f"work: {hours:g} h x ${needs.hourly:g} = ${hours * needs.hourly:,.0f}"


def _asked(needs: Needs, calls: float = 1.0) -> tuple[float, str]:
    """Dollars of a request's calls to the API, and the sum."""
    each = needs.price.cost(needs.read, needs.answer) * calls
    text = (
        f"API: {calls:g} x ({needs.read:g} x ${needs.price.input:g} + {needs.answer:g} x ${needs.price.output:g}) "
        f"/ 1e6 = ${each:.6f} a request"
    )
    return each, text


def _run(needs: Needs, fit: Fit, calls: float = 1.0) -> tuple[float, str]:
    """Dollars of power for a request at home, and the sum."""
    seconds = calls * fit.seconds(needs.read, needs.answer)
    each = seconds * needs.card.watts / 3.6e6 * needs.power
    text = (
        f"power: {seconds:.2f} s x {needs.card.watts:g} W x ${needs.power:g}/kWh = ${each:.7f} a request "
        f"({fit.model} {fit.kind}, {fit.speed:.0f} tokens/s)"
    )
    return each, text


def _taught(needs: Needs, fit: Fit) -> tuple[float, list[str]]:
    """Dollars a year of teaching a student: the teacher's answers, the card's hours, somebody's work."""
    lessons, times = _LESSONS[needs.width], _TEACHINGS[needs.stability]
    tokens = lessons * (needs.read + needs.answer)
    if needs.home_taught:
        teacher = _home_teacher(needs, fit)
        seconds = lessons * teacher.seconds(needs.read, needs.answer) if teacher else 0.0
        answers = seconds / 3.6e6 * needs.card.watts * needs.power
        who = teacher.model if teacher else "a larger model"
        why = "data may not leave" if needs.private else "the API's terms forbid to train on its answers"
        said = f"{lessons:,} lessons from {who} at home ({why}): {seconds / 3600:,.0f} h, ${answers:,.2f}"
    else:
        answers = lessons * needs.price.cost(needs.read, needs.answer)
        said = f"{lessons:,} lessons from the API: ${answers:,.2f}"
    hours = _LEARNING * MODELS[fit.model].parameters * tokens / needs.card.flops / 3600
    power = hours * needs.card.watts / 1000 * needs.power
    again = _HOURS["again"] * needs.hourly * (times - 1)
    total = times * (answers + power) + again
    sums = [
        f"teaching: {said}",
        f"training: 18 x {MODELS[fit.model].parameters:,} x {tokens:,.0f} tokens / {needs.card.flops:g} a second = "
        f"{hours:,.1f} h, ${power:,.2f}",
        f"{times} x a year, {times - 1} of them with {_HOURS['again']:g} h of work: ${total:,.0f}",
    ]
    return total, sums


def _home_teacher(needs: Needs, student: Fit) -> Fit | None:
    """The largest model on the card of at least twice the student's size."""
    least = 2 * MODELS[student.model].parameters
    above = [name for name, shape in MODELS.items() if shape.parameters >= least]
    return largest(needs.card, needs.context, above) if above else None


def _untaught(needs: Needs, student: Fit) -> list[str]:
    if not needs.home_taught or _home_teacher(needs, student):
        return []
    return ["no model of twice the student's size fits the card to teach it"]


def _quick(needs: Needs, seconds: float, of: str = "") -> Iterator[str]:
    """Why a way at home is too slow, one answer at a time."""
    if seconds > needs.latency:
        yield f"{of}takes {seconds:.1f} s an answer, {needs.latency:g} s are allowed"
    yield from _busy(needs, seconds, of)


def _busy(needs: Needs, seconds: float, of: str = "") -> Iterator[str]:
    """Why one card is not enough, where more have no price."""
    if (cards := _cards(needs, seconds)) > 1 and not needs.card_price:
        yield (
            f"{of}would be busy {needs.volume * seconds / _SECONDS:.1f} days a day, answers one after the other: "
            f"takes {cards} such cards, which --card-price would count"
        )


def _cards(needs: Needs, seconds: float) -> int:
    """Cards that answer so many requests of so many seconds, each one after the other; a server that batches needs fewer."""
    return max(1, ceil(needs.volume * seconds / _SECONDS))


def _bought(needs: Needs, seconds: float) -> tuple[float, list[str]]:
    """Dollars of the cards, and the sum where they cost any."""
    if not needs.card_price:
        return 0.0, []
    cards = _cards(needs, seconds)
    price = cards * needs.card_price
    return price, [f"cards: {cards} x ${needs.card_price:,.0f} = ${price:,.0f}, answers one after the other"]


def _slow(needs: Needs, calls: float) -> list[str]:
    """Why the API is too slow."""
    seconds = calls * needs.asked
    if seconds <= needs.latency:
        return []
    return [f"the API is taken to need {seconds:.1f} s an answer, {needs.latency:g} s are allowed"]


def _way(
    needs: Needs, name: str, what: str, fixed: float, each: float, sums: Sequence[str], against: Sequence[str]
) -> Way:
    way = Way(name, what, fixed, each, tuple(sums), tuple(against))
    if way.year(needs.volume) > needs.budget:
        over = f"costs ${way.year(needs.volume):,.0f} in the first year, the budget is ${needs.budget:,.0f}"
        way = Way(name, what, fixed, each, tuple(sums), (*against, over))
    return way


def _private(needs: Needs) -> list[str]:
    return ["data may not leave, and requests would"] if needs.private else []


def _bar(needs: Needs, wrong: float, who: str) -> list[str]:
    if wrong <= needs.error:
        return []
    return [f"{who} is taken to be worse in {wrong:.0%} of answers, {needs.error:.0%} are allowed"]


def _prompt(needs: Needs) -> Way:
    work, hours = _hours(needs, "prompt")
    each, asked = _asked(needs, needs.steps)
    name = "prompt and look up (RAG)" if needs.facts else "prompt"
    return _way(
        needs,
        name,
        "the large model through its API",
        work,
        each,
        [hours, asked],
        [*_private(needs), *_slow(needs, needs.steps)],
    )


def _quantise(needs: Needs, larger: Fit) -> Way:
    work, hours = _hours(needs, "quantise")
    each, power = _run(needs, larger, needs.steps)
    seconds = needs.steps * larger.seconds(needs.read, needs.answer)
    against = [*_bar(needs, needs.wrong[1], larger.model), *_quick(needs, seconds)]
    what = f"{larger.model} {larger.kind} at home"
    cards, bought = _bought(needs, seconds)
    return _way(needs, "quantise a bigger one", what, work + cards, each, [hours, *bought, power], against)


def _distil(needs: Needs, student: Fit) -> Way:
    work, hours = _hours(needs, "distil")
    taught, sums = _taught(needs, student)
    each, power = _run(needs, student, needs.steps)
    seconds = needs.steps * student.seconds(needs.read, needs.answer)
    against = [
        *_untaught(needs, student),
        *_bar(needs, needs.wrong[0], "the student"),
        *_quick(needs, seconds),
    ]
    cards, bought = _bought(needs, seconds)
    fixed = work + taught + cards
    return _way(
        needs,
        "distil",
        f"{student.model} {student.kind} at home",
        fixed,
        each,
        [hours, *sums, *bought, power],
        against,
    )


def _cascade(needs: Needs, student: Fit) -> Way:
    work, hours = _hours(needs, "distil", "cascade")
    taught, sums = _taught(needs, student)
    each, power = _run(needs, student, needs.steps)
    share = escalated(needs.wrong[0], needs.error)
    more, asked = _asked(needs, needs.steps * share)
    seconds = needs.steps * student.seconds(needs.read, needs.answer)
    went = _went(needs, share, "the API")
    cards, bought = _bought(needs, seconds)
    fixed = work + taught + cards
    what = f"{student.model} {student.kind} at home, {share:.0%} of requests on to the API"
    against = [*_private(needs), *_untaught(needs, student), *_quick(needs, seconds, "the student ")]
    against += _slow(needs, needs.steps) if share else []
    sums = [hours, *sums, *bought, power, went, asked]
    return _way(needs, "cascade", what, fixed, each + more, sums, against)


def _both(needs: Needs, student: Fit) -> Way | None:
    """A student for every day and a larger model for hard questions, on one card."""
    least = max(_LARGER, 2 * MODELS[student.model].parameters)
    left = needs.latency - needs.steps * student.seconds(needs.read, needs.answer)
    fits = [
        fit
        for name, shape in MODELS.items()
        if shape.parameters >= least
        and (fit := best_kind(name, needs.card, needs.context, taken=student.bytes))
    ]
    quick_enough = [fit for fit in fits if needs.steps * fit.seconds(needs.read, needs.answer) <= left]
    larger = max(quick_enough or fits, key=lambda fit: MODELS[fit.model].parameters, default=None)
    if larger is None:
        return None
    work, hours = _hours(needs, "distil", "cascade")
    taught, sums = _taught(needs, student)
    own, power = _run(needs, student, needs.steps)
    share = escalated(needs.wrong[0], needs.error)
    more, again = _run(needs, larger, needs.steps * share)
    quick, slow = (needs.steps * fit.seconds(needs.read, needs.answer) for fit in (student, larger))
    against = [*_untaught(needs, student), *(_bar(needs, needs.wrong[1], larger.model) if share else [])]
    if quick + slow > needs.latency:
        against.append(f"an escalated answer takes {quick + slow:.1f} s, {needs.latency:g} s are allowed")
    against += _busy(needs, quick + share * slow)
    cards, bought = _bought(needs, quick + share * slow)
    what = f"{student.model} {student.kind} and {larger.model} {larger.kind} on one card, {share:.0%} of requests on to it"
    sums = [hours, *sums, *bought, power, _went(needs, share, larger.model), again]
    return _way(needs, "distil and quantise", what, work + taught + cards, own + more, sums, against)


def _agent(needs: Needs, student: Fit) -> Way:
    """The student takes the steps that are easy, the large model the hard one."""
    work, hours = _hours(needs, "distil", "agent")
    taught, sums = _taught(needs, student)
    own, power = _run(needs, student, needs.steps - 1)
    more, asked = _asked(needs, 1)
    seconds = (needs.steps - 1) * student.seconds(needs.read, needs.answer)
    what = f"{student.model} {student.kind} for {needs.steps - 1} steps, the API for the one it cannot take"
    against = [*_private(needs), *_untaught(needs, student), *_slow(needs, 1)]
    against += _quick(needs, seconds, "the student ")
    cards, bought = _bought(needs, seconds)
    sums = [hours, *sums, *bought, power, asked]
    return _way(needs, "composed agent", what, work + taught + cards, own + more, sums, against)


def _went(needs: Needs, share: float, who: str) -> str:
    wrong = needs.wrong[0]
    allowed = needs.error
    return (
        f"on to {who}: at least ({wrong:.3g} - {allowed:g}) / (1 - {allowed:g}) = {share:.1%}, more where errors are not "
        "recognised"
    )


def crossing(one: Way, other: Way) -> float | None:
    """Requests a day at which two ways cost the same in the first year, None where they never do."""
    if one.each == other.each:
        return None
    volume = (one.fixed - other.fixed) / (other.each - one.each) / DAYS
    return volume if volume > 0 else None


def break_even(way: Way, before: Way, volume: float) -> float | None:
    """Days after which a way has earned what it costs more at first, None where it never does."""
    saved = (before.each - way.each) * volume
    more = way.fixed - before.fixed
    if more <= 0:
        return 0.0
    return more / saved if saved > 0 else None


def turning_points(
    best: Way | None, found: Sequence[Way], needs: Needs, again: Callable[[Needs], list[Way]] = ways
) -> Iterator[str]:
    """What would change the advice, each tried by changing one need and summing anew."""
    for other in found:
        if best is None or other is best or other.against:
            continue
        volume = crossing(best, other)
        if volume:
            less = "below" if other.fixed < best.fixed else "above"
            yield f"{other.name} is cheaper {less} {volume:,.0f} requests a day; you have {needs.volume:,.0f}"
    for words, changed in _otherwise(needs):
        new = advised(again(changed), changed)
        if new is None:
            if best is not None:
                yield f"{words}: nothing here would do"
        elif best is None or new.name != best.name:
            yield f"{words}: {new.name}, ${new.year(changed.volume):,.0f} in the first year"


def _otherwise(needs: Needs) -> Iterator[tuple[str, Needs]]:
    """Needs that differ in one thing."""

    def with_(**one: object) -> Needs:
        return replace(needs, **one)  # type: ignore[arg-type]

    own = needs.wrong[0]
    yield "if data may leave" if needs.private else "if data may not leave", with_(private=not needs.private)
    yield (
        f"if the student were worse in {min(2 * own, 0.9):.0%} of answers",
        with_(student_error=min(2 * own, 0.9)),
    )
    yield f"if the student were worse in {own / 2:.0%} of answers", with_(student_error=own / 2)
    yield f"if only {needs.error / 2:.1%} of answers might be worse", with_(error=needs.error / 2)
    for stability in ("stable", "drifting", "moving"):
        if stability != needs.stability:
            yield f"if the task were {stability}", with_(stability=stability)
    tenth = Price(models=["*"], input=needs.price.input / 10, output=needs.price.output / 10)
    yield "if the API cost a tenth", with_(price=tenth)
    yield f"if answers might take {10 * needs.latency:g} s", with_(latency=10 * needs.latency)
    if needs.budget != float("inf"):
        yield "without a limit of the budget", with_(budget=float("inf"))
        yield "if your own hours cost nothing (--hourly 0)", with_(hourly=0.0)
    card = replace(needs.card, memory=2 * needs.card.memory)
    yield "with a card of twice the memory", with_(card=card)
    yield "with ten times the requests", with_(volume=10 * needs.volume)
    yield "with a tenth of the requests", with_(volume=needs.volume / 10)
