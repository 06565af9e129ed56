"""Questions to answers, without a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

verbs = typer.Typer()


@verbs.command(
    epilog="Examples: stillroom teach questions.jsonl --model gpt-4o-mini --api openai --dry-run; "
    "cat questions.txt | stillroom teach - --model large --api http://127.0.0.1:8080/v1 --echo | head"
)
def teach(
    source: Annotated[
        str, typer.Argument(help="Questions: JSONL, text, one a line, or - for standard input.")
    ],
    model: Annotated[str, typer.Option(help="The teacher: its name at the API, or a folder or .gguf file.")],
    api: Annotated[Optional[str], typer.Option(help="Base URL of the API, or openai.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="File of answers; those it has are not asked for again.")] = Path(
        "answers.jsonl"
    ),
    sets: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option(
            "--set", help="Any teach.* or teacher.* setting: --set teach.samples=4. May be repeated."
        ),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars to stop at, earlier answers included.")
    ] = None,
    prices: Annotated[Optional[Path], typer.Option(help="Your file of prices and terms.")] = None,  # noqa: UP045
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Use a teacher whose terms forbid training, with leave.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seeds the samples.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would come to in requests, tokens, money and time.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Write the answers to standard output too.")] = False,
) -> None:
    """Have questions answered by a teacher, without a recipe: every answer is kept, none is paid for twice."""
    from stillroom.display import open_progress
    from stillroom.lessons.teach.teach_file import teach_file
    from stillroom.lessons.teach.teach_settings import teach_settings

    given = {"model": model, "api": api, "prices": str(prices) if prices else None}
    teacher, settings = teach_settings(
        {key: value for key, value in given.items() if value}
        | ({"accept_terms": True} if accept_terms else {}),
        {"max_cost": max_cost} if max_cost is not None else {},
        sets or (),
    )
    counts = teach_file(
        source, out, teacher, settings, seed=seed, dry_run=dry_run, echo=echo, progress=open_progress()
    )
    if not dry_run:
        told = ", ".join(f"{value:,} {key}" for key, value in counts.items() if value)
        print(f"{out}: {told or 'nothing was left to ask'}", file=sys.stderr)
