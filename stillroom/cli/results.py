"""What the end of a run, and the comparison of two, show."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from stillroom.contracts.runfolder import Run


def show_results(found: Run) -> None:
    """The table at the end of a run, and where the report is."""
    from stillroom.report.console import rows_table
    from stillroom.report.decision import decide
    from stillroom.report.routed import fitted
    from stillroom.report.rows import Results, read_results

    console = _console()
    rows = read_results(found.folder("evaluate"))
    if (table := rows_table(rows)) is not None:
        console.print(table)
    if (decision := decide(Results.of(rows), found.recipe.report.keep, fitted(found))) is not None:
        console.print(str(decision), highlight=False, markup=False)
    console.print(f"report: {found.path / 'report.html'}", highlight=False, soft_wrap=True)


def show_comparison(first: Run, second: Run, out: Path) -> None:
    """Write the page of two runs, and say in the terminal what it says."""
    from stillroom.report.versus import findings, tables, title, write_comparison

    found = write_comparison(first, second, out)
    console = _console()
    for text in (title(found), *findings(found)):
        console.print(text, highlight=False, markup=False)
    for table in tables(found):
        console.print(table)
    for text in found.apart:
        console.print(f"not compared: {text}", highlight=False, markup=False)
    console.print(f"comparison: {out}", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    """Standard output; where no terminal says how wide it is, a table gets what it needs."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)
