"""The application, put together from its verbs in the order in which --help lists them, and its way out."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from stillroom import __version__
from stillroom.cli import (
    advising,
    books,
    filtering,
    machine,
    models,
    runs,
    serving,
    starting,
    teaching,
    writing,
)
from stillroom.contracts.errors import Fault, StillroomError

app = typer.Typer(
    name="stillroom",
    help="Distil a big language model into a small one that runs at home, with a report that proves what was kept.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with: stillroom init tickets, then stillroom run tickets",
)
for _room in (starting, advising, runs, filtering, models, serving, writing, teaching, machine):
    app.add_typer(_room.verbs)
app.add_typer(books.book_app, name="book", help="Look at lesson books, check, join and divide them.")


def _version(value: bool) -> None:
    if value:
        print(f"stillroom {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; every fault becomes a few plain lines and an exit code: 2 the user can mend it, 1 a fault."""
    try:
        app()  # usage errors, --help and Ctrl-C end inside with their own words
    except StillroomError as error:
        _leave(error)
    except Exception as error:
        if os.environ.get("STILLROOM_TRACEBACK"):
            raise
        _leave(
            Fault(
                "stillroom failed in a way that it should not",
                got=f"{type(error).__name__}: {str(error)[:500]}",
                do="run again with STILLROOM_TRACEBACK=1 to see where, and report it",
            )
        )


def _leave(error: StillroomError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
