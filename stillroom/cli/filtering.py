"""Answers to lessons, without a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

verbs = typer.Typer()


@verbs.command(
    name="filter",
    epilog="Examples: stillroom filter answers.jsonl --set verify=number --out lessons.jsonl --rejected rejected.jsonl; "
    "cat answers.jsonl | stillroom filter --set keep=2 > lessons.jsonl",
)
def filter_(
    source: Annotated[str, typer.Argument(help="JSONL of answers, or - for standard input.")] = "-",
    sets: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option("--set", help="A setting of the recipe's filter section: verify=json. May be repeated."),
    ] = None,
    out: Annotated[str, typer.Option(help="File of lessons to write, or - for standard output.")] = "-",
    rejected: Annotated[Optional[Path], typer.Option(help="File of rejects with their reasons.")] = None,  # noqa: UP045
    preferences: Annotated[Optional[Path], typer.Option(help="File of pairs, right and wrong.")] = None,  # noqa: UP045
    review: Annotated[Optional[Path], typer.Option(help="File of lessons whose facts are in doubt.")] = None,  # noqa: UP045
    card: Annotated[Optional[Path], typer.Option(help="Dataset card to write.")] = None,  # noqa: UP045
    reasoning: Annotated[bool, typer.Option(help="Keep the reasoning in the lessons.")] = True,
) -> None:
    """Divide answers into lessons and rejects: verified, not repeated, not in an evaluation file.

    The answer is the assistant's turn at the end of a line's messages, or its completion, response, output or solution.
    The right answer is in reference, ground_truth or the like. Samples of one question stand in consecutive lines.
    """
    from stillroom.lessons.filter.filter_file import filter_file, settings_recipe, summary_lines

    recipe = settings_recipe(sets or (), source)
    summary = filter_file(
        source,
        out,
        recipe,
        rejected=rejected,
        preferences=preferences,
        review=review,
        reasoning=reasoning,
    )
    if card is not None:
        from stillroom.contracts.files import write_atomically
        from stillroom.report.cards import dataset_card

        write_atomically(card, dataset_card(summary, recipe, source=source))
    for line in summary_lines(summary):
        print(line, file=sys.stderr)
