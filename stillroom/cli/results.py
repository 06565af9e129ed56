"""What the end of a run shows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillroom.contracts.runfolder import Run


def show_results(found: Run) -> None:
    """The table at the end of a run, and where the report is."""
    from rich.console import Console

    from stillroom.report.console import results_table

    # Where no terminal says how wide it is, the table gets what it needs.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if (table := results_table(found)) is not None:
        console.print(table)
    console.print(f"report: {found.path / 'report.html'}", highlight=False, soft_wrap=True)
