"""Rows of any number, read a window at a time and within it by length, so that a batch is of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

WINDOW = 8
"""Batches that are sorted by length together."""


class Selecting(Protocol):
    """Tokens to be read, and how many of them something is wanted of."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def selected(self) -> int: ...


R = TypeVar("R", bound=Selecting)
F = TypeVar("F")


def by_length(
    rows: Iterable[R],
    read: Callable[[list[R]], list[F]],
    *,
    batch_size: int,
    width: int,
    numbers: int,
) -> Iterator[F]:
    """What `read` finds for each row, in the order of the rows.

    Args:
        rows: read a window ahead.
        read: takes a batch, longest row first, and gives what it found for each of its rows.
        batch_size: most rows of a batch.
        width: numbers that a selected token brings.
        numbers: most numbers held at once; a single row may bring more.
    """
    for window in _windows(rows, batch_size, width, numbers):
        order = sorted(range(len(window)), key=lambda index: -len(window[index].ids))
        done: dict[int, F] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            done.update(zip(chosen, read([window[index] for index in chosen]), strict=True))
        for index in range(len(window)):
            yield done.pop(index)


def _windows(rows: Iterable[R], batch_size: int, width: int, numbers: int) -> Iterator[list[R]]:
    window: list[R] = []
    held = 0
    for row in rows:
        more = row.selected * width
        if window and (held + more > numbers or len(window) >= WINDOW * batch_size):
            yield window
            window, held = [], 0
        window.append(row)
        held += more
    if window:
        yield window
