"""The probes of what is lost as tables: a line a model, a column a figure, and in words what each figure is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stillroom.contracts.records import PROBE, ResultRow
from stillroom.report.rows import Results, model_name, percent, points, span
from stillroom.report.verdict import span_points


@dataclass(frozen=True)
class Cell:
    """A figure and its interval as printed."""

    value: str
    interval: str


@dataclass(frozen=True)
class ProbeTable:
    """What one probe found."""

    title: str
    note: str
    columns: list[str]
    lines: list[tuple[str, list[Cell | None]]]
    """Each model with its figures, in the order of the columns."""


_TITLES = {
    "facts": "Facts in the question",
    "outside": "Questions outside the task",
    "rephrased": "Questions put in other words",
    "format": "The form of the answers",
    "rare": "Rare lessons",
    "abstention": "Saying that it cannot tell",
    "refusals": "Refusals",
    "quantised": "What quantising costs",
}
_NOTES = {
    "facts": "How often the answer names the fact that was asked for, of so many made-up ones in the question. A model "
    "that can only do its task may fail with one fact already. Ten questions each: a figure may be thirty points off; its "
    "interval is in report.csv.",
    "outside": "How sure the models are of what they answer to questions that are not their task, against their own, and "
    "how many of those answers have the task’s form all the same. The further the first two lie apart, the "
    "better doubt can be noticed.",
    "rephrased": "Exact answers to the same questions in other case, with typing errors, with courtesies around them, with "
    "their first sentence last: the share of those to the questions as they were.",
    "format": "Answers in the task’s form, right or wrong, and answers that came to an end by themselves.",
    "rare": "Exact answers where the right one is rare among the lessons, and where it is common: the third of the "
    "questions at either end, or more where many are equally common.",
    "abstention": "Where the teacher says that it cannot tell (an empty field, words that say so), how often the model does "
    "too, and in how many answers it does where the teacher does not.",
    "refusals": "How often questions that the teacher refused are refused.",
    "quantised": "Exact answers of a file minus those of the model that it was made from, and how much less than a "
    "baseline’s file of the same kind that is: above zero, the distilled model quantises better. In percentage "
    "points.",
}
_COLUMNS = {
    "confidence_inside": "Sure of own task",
    "confidence_outside": "Sure outside",
    "form_outside": "In own form outside",
    "kept:case": "Other case",
    "kept:typos": "Typing errors",
    "kept:politeness": "Courtesies",
    "kept:order": "Other order",
    "form": "In form",
    "ended": "Came to an end",
    "right_rare": "Rare",
    "right_common": "Common",
    "abstains_too": "Where the teacher does",
    "abstains_alone": "Where it does not",
    "refuses": "Refused",
    "lost": "Change",
}


def probe_tables(results: Results) -> list[ProbeTable]:
    """A table for each probe that was made."""
    return [_table(results, name) for name in results.probes]


def probe_title(name: str) -> str:
    """What the page calls a probe."""
    return _TITLES.get(name, name)


@dataclass(frozen=True)
class ProbeFigure:
    """One figure of a model with what it is called and how it is printed, its interval beside it."""

    label: str
    text: str
    row: ResultRow


def probe_figures(results: Results, model: str) -> Iterator[ProbeFigure]:
    """All that the probes found of one model."""
    for name in results.probes:
        for row in results.rows:
            if row.model == model and row.task == PROBE + name:
                cell = _cell(row, name)
                text = f"{cell.value} ({cell.interval})" if cell.interval else cell.value
                what = _counted(row) if row.at is not None else _column(row)
                yield ProbeFigure(f"{probe_title(name)}: {what}", text, row)


def _counted(row: ResultRow) -> str:
    """A point of a curve in words: 8 facts."""
    return f"{row.at:.0f} fact{'s' if row.at != 1 else ''}"


def _table(results: Results, name: str) -> ProbeTable:
    rows = [row for row in results.rows if row.task == PROBE + name]
    columns = list(dict.fromkeys(map(_column, rows)))
    cells = {(row.model, _column(row)): _cell(row, name) for row in rows}
    models = [model for model in results.models if any(row.model == model for row in rows)]
    lines = [(model, [cells.get((model, column)) for column in columns]) for model in models]
    return ProbeTable(probe_title(name), _NOTES.get(name, ""), columns, lines)


def _column(row: ResultRow) -> str:
    if row.metric == "recall":
        return f"{row.at:.0f}"
    if row.metric == "lost_less":
        return f"Against {model_name(row.versus or '')}"
    return _COLUMNS.get(row.metric, row.metric)


def _cell(row: ResultRow, probe: str) -> Cell:
    if probe == "facts":  # eight columns of intervals would fit no screen
        return Cell(percent(row.value, 0), "")
    if probe == "quantised":
        interval = (span_points(row) or "").removeprefix("95% interval ").removesuffix(" points")
        return Cell(points(row.value).removesuffix(" points"), interval)
    return Cell(percent(row.value), span(row) or "")
