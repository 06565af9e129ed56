"""Whether to distil at all, before there is a recipe."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Optional

import typer

verbs = typer.Typer()

_QUESTIONS = {
    "width": "How wide is the task? narrow (one kind of answer), medium, wide (anything)",
    "stability": "How often does it change? stable (once a year), drifting (quarterly), moving (every other week)",
    "volume": "Requests a day",
    "latency": "Seconds that an answer may take",
    "vram": "Memory of the card, such as 12GB; none where there is no card",
    "private": "May data not leave this house? yes or no",
    "error": "Share of answers that may be worse than the large model's, such as 0.05",
    "budget": "Dollars for the first year, 0 for no limit",
}


@verbs.command(
    epilog="Example: stillroom advise --width narrow --volume 20000 --card 'RTX 3060' --model gpt-4.1 --error 0.05"
)
def advise(
    width: Annotated[Optional[str], typer.Option(help="narrow, medium or wide.")] = None,  # noqa: UP045
    stability: Annotated[Optional[str], typer.Option(help="stable, drifting or moving.")] = None,  # noqa: UP045
    volume: Annotated[Optional[float], typer.Option(help="Requests a day.", min=0.01)] = None,  # noqa: UP045
    latency: Annotated[Optional[float], typer.Option(help="Seconds an answer may take.", min=0.01)] = None,  # noqa: UP045
    vram: Annotated[Optional[str], typer.Option(help="Memory of the card, such as 12GB.")] = None,  # noqa: UP045
    card: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A card by its name, such as 'RTX 3060': memory, bandwidth and watts; none: the processor alone."
        ),
    ] = None,
    bandwidth: Annotated[
        str, typer.Option(help="Bytes a second of a card that is given by --vram.")
    ] = "400GB",
    watts: Annotated[float, typer.Option(help="Of a card that is given by --vram.")] = 200.0,
    private: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--private/--not-private", help="Data may not leave this house."),
    ] = None,
    error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of answers that may be worse than the large model's.", min=0, max=0.99),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Dollars for the first year; 0: no limit.", min=0)
    ] = None,
    model: Annotated[
        str, typer.Option(help="The large model that is asked otherwise; its price is looked up.")
    ] = "gpt-4.1",
    prices: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Dollars a million tokens read and written instead, such as 2.0/8.0."),
    ] = None,
    prompt: Annotated[Optional[float], typer.Option(help="Tokens of a request.", min=1)] = None,  # noqa: UP045
    answer: Annotated[Optional[float], typer.Option(help="Tokens of an answer.", min=1)] = None,  # noqa: UP045
    facts: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Tokens of passages that are looked up for each request.", min=0),
    ] = None,
    steps: Annotated[Optional[int], typer.Option(help="Calls that one request takes.", min=1)] = None,  # noqa: UP045
    student_error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of a student's answers that are worse, as measured.", min=0, max=1),
    ] = None,
    larger_error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="The same of a larger model at home.", min=0, max=1),
    ] = None,
    card_price: Annotated[float | None, typer.Option(help="Dollars, where it must be bought.", min=0)] = None,
    api_seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Seconds that the large model's API takes for an answer, as measured.", min=0),
    ] = None,
    power: Annotated[Optional[float], typer.Option(help="Dollars a kilowatt-hour.", min=0)] = None,  # noqa: UP045
    hourly: Annotated[Optional[float], typer.Option(help="Dollars an hour of work.", min=0)] = None,  # noqa: UP045
) -> None:
    """Say whether to distil at all: what each way costs over a year, what fits the card, and what would change that.

    What is not given is asked on a terminal, and assumed elsewhere; assumptions are marked.
    """
    from stillroom.planning.advising import advice_lines
    from stillroom.planning.needed import needs_of

    given: dict[str, Any] = {
        "width": width,
        "stability": stability,
        "volume": volume,
        "latency": latency,
        "vram": vram,
        "card": card,
        "private": private,
        "error": error,
        "budget": budget,
        "prompt": prompt,
        "answer": answer,
        "facts": facts,
        "steps": steps,
        "student_error": student_error,
        "larger_error": larger_error,
        "card_price": card_price,
        "api_seconds": api_seconds,
        "power": power,
        "hourly": hourly,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if sys.stdin.isatty():
        given |= _asked(given)
    for line in advice_lines(needs_of(given, model=model, prices=prices, bandwidth=bandwidth, watts=watts)):
        print(line)


def _asked(given: dict[str, Any]) -> dict[str, str]:
    """Answers to what is missing; none where the reader goes on without one."""
    missing = {
        name: text
        for name, text in _QUESTIONS.items()
        if name not in given and not (name == "vram" and "card" in given)
    }
    answers = {name: typer.prompt(text, default="", show_default=False) for name, text in missing.items()}
    return {name: text for name, text in answers.items() if text.strip()}
