"""The advice as it is read: what was taken for granted, what fits the card, the ways side by side, the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillroom.planning.advice import (
    DAYS,
    Needs,
    Way,
    advised,
    break_even,
    turning_points,
    ways,
)
from stillroom.planning.families import MODELS
from stillroom.planning.fitting import (
    HOST_BANDWIDTH,
    OF_NOMINAL,
    PROMPT_SPEED,
    best_kind,
    efficiency,
    fit,
    longest_context,
    pairs,
)
from stillroom.planning.machine import size

_STUDENTS = ("Qwen3-0.6B", "Llama-3.2-1B", "Qwen3-1.7B", "Llama-3.2-3B", "Qwen3-4B")


def advice_lines(needs: Needs) -> Iterator[str]:
    """The advice, a line each."""
    yield from _needs_lines(needs)
    yield ""
    yield from fit_lines(needs)
    yield ""
    found = ways(needs)
    best = advised(found, needs)
    yield from _way_lines(found, best, needs)
    yield ""
    yield from _answer_lines(found, best, needs)


def _needs_lines(needs: Needs) -> Iterator[str]:
    own, larger = needs.wrong
    rows = {
        "width": needs.width,
        "stability": needs.stability,
        "volume": f"{needs.volume:,.0f} requests a day",
        "latency": f"{needs.latency:g} s an answer",
        "private": "data may not leave" if needs.private else "data may leave",
        "error": f"{needs.error:.1%} of answers may be worse than the large model's",
        "budget": f"${needs.budget:,.0f} in the first year" if needs.budget != float("inf") else "no limit",
        "prompt": f"{needs.prompt:,.0f} tokens",
        "answer": f"{needs.answer:,.0f} tokens",
        "facts": f"{needs.facts:,.0f} tokens are looked up for each request",
        "steps": f"{needs.steps} calls a request",
        "price": f"${needs.price.input:g} and ${needs.price.output:g} a million tokens read and written{_dated(needs)}",
        "api_seconds": f"{needs.asked:.1f} s an answer of the large model",
        "student_error": f"{own:.1%} of a student's answers are worse",
        "larger_error": f"{larger:.1%} of a larger model's at home are",
        "card": f"{size(needs.card.memory)}, {size(needs.card.bandwidth)}/s, {needs.card.watts:g} W",
        "card_price": f"${needs.card_price:,.0f} to buy it",
        "power": f"${needs.power:g} a kWh",
        "hourly": f"${needs.hourly:g} an hour of work",
    }
    yield "what is taken for granted"
    for name, text in rows.items():
        yield f"  {name:<14} {text}{'' if name in needs.given else ' (assumed)'}"


def _dated(needs: Needs) -> str:
    return f", as of {needs.price.as_of}" if needs.price.as_of else ""


def fit_lines(needs: Needs) -> Iterator[str]:
    """What fits the card: the most exact kind of each model, with its longest context and its speed."""
    card, context = needs.card, needs.context
    yield f"what fits {size(card.memory)}, with {context:,} tokens of context, answers one at a time"
    yield (
        f"  tokens a second = {OF_NOMINAL:g} x {size(card.bandwidth)}/s x the kind's share "
        f"(Q4_K_M {efficiency('Q4_K_M'):.2f}) / bytes read a token; a prompt {PROMPT_SPEED} times as fast"
    )
    yield f"  {'':<14} {'kind':<7} {'file':>9} {'cache':>9} {'longest context':>15} {'tokens/s':>9}"
    for name in MODELS:
        found = best_kind(name, card, context)
        if found:
            longest = f"{longest_context(found, card):,}"
            yield (
                f"  {name:<14} {found.kind:<7} {size(found.file):>9} {size(found.cache):>9} {longest:>15} "
                f"{found.speed:>9,.0f}"
            )
            continue
        part = fit(name, "Q4_K_M", card, context)
        yield (
            f"  {name:<14} {part.kind:<7} {size(part.file):>9} {size(part.cache):>9} {'not whole':>15} {part.speed:>9,.1f}"
            f"  {part.layers} of {part.all} layers on the card (-ngl {part.layers}), the rest at {size(HOST_BANDWIDTH)}/s"
        )
    for small, large in pairs(card, context, _STUDENTS):
        yield (
            f"  together: {small.model} {small.kind} and {large.model} {large.kind}, "
            f"{size(small.bytes + large.bytes)}, {small.speed:,.0f} and {large.speed:,.0f} tokens/s"
        )


def _way_lines(found: Sequence[Way], best: Way | None, needs: Needs) -> Iterator[str]:
    yield f"the ways, over a year of {needs.volume * DAYS:,.0f} requests"
    yield f"  {'':<26} {'first year':>12} {'fixed':>10} {'per 1,000':>10}"
    for way in sorted(found, key=lambda way: (bool(way.against), way.year(needs.volume))):
        mark = "*" if way is best else "-" if way.against else " "
        yield (
            f"{mark} {way.name:<26} {'$' + format(way.year(needs.volume), ',.0f'):>12} "
            f"{'$' + format(way.fixed, ',.0f'):>10} {'$' + format(1000 * way.each, ',.3f'):>10}"
        )
        yield f"      {way.what}"
        yield from (f"      {text}" for text in way.sums)
        yield from (f"      will not do: {text}" for text in way.against)


def _answer_lines(found: Sequence[Way], best: Way | None, needs: Needs) -> Iterator[str]:
    if best is None:
        yield "advice: nothing here would do; each way names its reasons"
        points = list(turning_points(None, found, needs))
        yield (
            "what would change it"
            if points
            else "nothing that was tried changes it: loosen more than one need"
        )
        yield from (f"  {point}" for point in points)
        return
    yield f"advice: {best.name}: {best.what}"
    first = found[0]
    if best is not first and not first.against:
        days = break_even(best, first, needs.volume)
        if days is None:
            yield f"  it never earns back what it costs more than `{first.name}` at first"
        else:
            saved = f"saves ${first.each - best.each:.6f} a request against `{first.name}`"
            yield f"  break-even: {saved}; ${best.fixed - first.fixed:,.0f} more at first are back after {days:,.0f} days"
    points = list(turning_points(best, found, needs))
    yield "what would change it" if points else "nothing that was tried changes it"
    yield from (f"  {point}" for point in points)
    yield "  the errors are assumed until they are measured: stillroom run, then --student-error from its report"
