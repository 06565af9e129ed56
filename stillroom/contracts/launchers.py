"""What launchers of several processes tell each of them: torchrun, `accelerate launch`, mpirun."""

from __future__ import annotations

import os

_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""What launchers call a process's number, how many there are, and its number on its own machine."""


def place() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) where nothing has launched several."""
    for rank, size, _ in _NAMES:
        if size in os.environ:
            return int(os.environ.get(rank, 0)), int(os.environ[size])
    return 0, 1


def local_rank() -> int:
    """This process's number on its own machine."""
    for _, size, local in _NAMES:
        if size in os.environ:
            return int(os.environ.get(local, place()[0]))
    return 0


def without_launcher() -> dict[str, str]:
    """The environment of a process that is none of those that were launched, but was started by one of them."""
    launched = {name for names in _NAMES for name in names}
    return {name: value for name, value in os.environ.items() if name not in launched}
