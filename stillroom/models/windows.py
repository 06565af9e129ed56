"""Rows of any number, read a window at a time and within it by length, so that a batch is of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from stillroom.models.rendering import Rendered

WINDOW = 8
"""Batches that are sorted by length together."""


def by_length(
    rows: Iterable[Rendered],
    read: Callable[[list[Rendered]], list[Tensor]],
    *,
    batch_size: int,
    width: int,
    numbers: int,
) -> Iterator[Tensor]:
    """What `read` finds for each row, in the order of the rows.

    Args:
        rows: read a window ahead.
        read: takes a batch, longest row first, and gives `[selected, width]` for each of its rows.
        batch_size: most rows of a batch.
        width: numbers that a selected token brings.
        numbers: most numbers held at once; a single row may bring more.
    """
    for window in _windows(rows, batch_size, width, numbers):
        order = sorted(range(len(window)), key=lambda index: -len(window[index].ids))
        done: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            done.update(zip(chosen, read([window[index] for index in chosen]), strict=True))
        for index in range(len(window)):
            yield done.pop(index)


def _windows(rows: Iterable[Rendered], batch_size: int, width: int, numbers: int) -> Iterator[list[Rendered]]:
    window: list[Rendered] = []
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
