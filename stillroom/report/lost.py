"""The probes of what is lost as tables: a line a model, a column a figure, and in words what each figure is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stillroom.contracts.records import PROBE, ResultRow
from stillroom.report.drawing import Plot, Series, line_plot
from stillroom.report.plots import tone
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
    over: str
    """What the numbers are that head the columns of a curve; empty where there is none."""
    numbered: int
    """How many columns such a number heads; they come first."""
    plot: Plot | None
    """The curves of those that a reader compares: the teacher, the untrained student, the one that is handed over."""
    columns: list[str]
    lines: list[tuple[str, list[Cell | None]]]
    """Each model with its figures, in the order of the columns."""


_TITLES = {
    "facts": "Facts in the question",
    "chains": "Chains of steps",
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
    "chains": "How often the answer names who has a made-up key in the end, after so many hand-overs told in mixed order "
    "with those of a second key. They have nothing to do with the lessons: a model that can only do its task may fail with "
    "one step already. Ten questions each: a figure may be thirty points off; its interval is in report.csv.",
    "chains of its own": "How often questions of the run’s own kind are answered right, by the number of steps that they "
    "take; then those that take no more steps than the lessons do against those that take more. The intervals by number "
    "are in report.csv.",
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
    "right_trained": "As long as trained on",
    "right_longer": "Longer",
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
                unit = " points" if name == "quantised" else ""
                text = f"{cell.value}{unit} ({cell.interval})" if cell.interval else cell.value
                what = _counted(row) if row.metric in _OVER else _column(row)
                yield ProbeFigure(f"{probe_title(name)}: {what}", text, row)


_OVER = {
    "recall": ("fact", "Facts in the question"),
    "right_after": ("step", "Steps that the question takes"),
}
"""Of a curve: what is counted, and what heads its columns."""


def _counted(row: ResultRow) -> str:
    """A point of a curve in words: 8 facts."""
    thing, _ = _OVER[row.metric]
    return f"{row.at:.0f} {thing}{'s' if row.at != 1 else ''}"


def _table(results: Results, name: str) -> ProbeTable:
    rows = [row for row in results.rows if row.task == PROBE + name]
    metrics, columns = (
        list(dict.fromkeys(names)) for names in ((r.metric for r in rows), map(_column, rows))
    )
    cells = {(row.model, _column(row)): _cell(row, name) for row in rows}
    models = [model for model in results.models if any(row.model == model for row in rows)]
    lines = [(model, [cells.get((model, column)) for column in columns]) for model in models]
    curve = [metric for metric in metrics if metric in _OVER]
    return ProbeTable(
        title=probe_title(name),
        note=_NOTES.get(f"{name} of its own" if "right_longer" in metrics else name, ""),
        over=_OVER[curve[0]][1] if curve else "",
        numbered=sum(column.isdigit() for column in columns),
        plot=_plot(results, name, curve[0]) if curve else None,
        columns=columns,
        lines=lines,
    )


def _plot(results: Results, name: str, metric: str) -> Plot | None:
    """In percent, since a plot's ticks are bare numbers; None where nobody is ever right."""
    shown = ("teacher", "before", results.shipped or "student")
    curves = {model: results.all(model, PROBE + name, metric) for model in shown}
    series = [
        Series(model_name(model), [(row.at or 0.0, 100 * row.value) for row in rows], tone(model))
        for model, rows in curves.items()
        if rows
    ]
    if not any(value for curve in series for _, value in curve.points):
        return None
    _, over = _OVER[metric]
    return line_plot(f"Right answers by {over.lower()}", series, "% right", over.lower(), most=100)


def _column(row: ResultRow) -> str:
    if row.metric in _OVER:
        return f"{row.at:.0f}"
    if row.metric == "lost_less":
        return f"Against {model_name(row.versus or '')}"
    return _COLUMNS.get(row.metric, row.metric)


def _cell(row: ResultRow, probe: str) -> Cell:
    if row.metric in _OVER:  # eight columns of intervals would fit no screen
        return Cell(percent(row.value, 0), "")
    if probe == "quantised":
        interval = (span_points(row) or "").removeprefix("95% interval ").removesuffix(" points")
        return Cell(points(row.value).removesuffix(" points"), interval)
    return Cell(percent(row.value), span(row) or "")
