"""What this machine has."""

from __future__ import annotations

import typer

verbs = typer.Typer()


@verbs.command(epilog="Example: stillroom doctor")
def doctor() -> None:
    """Say what this machine has and what is missing: versions, accelerator, memory, disk, llama.cpp."""
    from stillroom.planning.machine import machine_lines

    for line in machine_lines():
        print(line)
