"""The table at the end of a run: models by quality, size, speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.contracts.records import ResultRow
from stillroom.report.rows import Results, data_size, nats, percent, speed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ConsoleTable:
    """Printed values; the first column names the model."""

    columns: list[str]
    rows: list[list[str]]


def rows_table(rows: Iterable[ResultRow]) -> Table | None:
    """Results for the terminal, or None where nothing was measured."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = console_table(rows)
    if not found.rows:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in found.columns:
        name = column == "model"
        table.add_column(Text(column), justify="left" if name else "right", overflow="fold", no_wrap=name)
    for row in found.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def console_table(rows: Iterable[ResultRow]) -> ConsoleTable:
    """Models by quality, size, speed and memory; a column that no model fills is left out."""
    results = Results.of(rows)
    measured = {row.model for row in results.rows if row.task in (*results.tasks, "size", "speed")}
    cells = {model: _cells(results, model) for model in results.models if model in measured}
    titles = [title for title in next(iter(cells.values()), {}) if any(row[title] for row in cells.values())]
    return ConsoleTable(
        ["model", *titles], [[model, *(row[t] for t in titles)] for model, row in cells.items()]
    )


def _cells(results: Results, model: str) -> dict[str, str]:
    """Every figure of a model, the same columns for each, empty where it was not measured."""
    cells: dict[str, str] = {}
    for task in results.tasks:
        title = "" if len(results.tasks) == 1 else f"{task}\n"
        for metric in _measures(results, task):
            row = results.find(model, task, metric)
            cells[title + _TITLES.get(metric, metric)] = _figure(row, len(results.scored) == 1) if row else ""
    for title, task, metric, show in _COSTS:
        value = results.value(model, task, metric)
        cells[title] = show(value) if value else ""
    return cells


def _measures(results: Results, task: str) -> list[str]:
    """What is shown of a task: few figures a model, since a terminal is narrow."""
    if task in results.scored:
        return ["exact", "retention", *(f"pass@{k}" for k in results.passes(task)[1:][-1:])]
    return ["perplexity"] if results.having(task, "perplexity") else ["loss", "kl"]


def _figure(row: ResultRow, interval: bool) -> str:
    if interval and row.metric == "exact" and row.low is not None and row.high is not None:
        return f"{percent(row.value)} ({100 * row.low:.1f}–{100 * row.high:.1f})"
    shares = row.metric in ("exact", "retention") or row.metric.startswith("pass@")
    return percent(row.value) if shares else nats(row.value)


_TITLES = {"retention": "kept", "kl": "KL"}
_COSTS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("size", "size", "file_bytes", data_size),
    ("tok/s", "speed", "tokens_per_second", speed),
    ("questions/s", "speed", "questions_per_second", speed),
    ("memory", "size", "peak_memory_bytes", data_size),
)
