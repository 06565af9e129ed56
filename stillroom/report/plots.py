"""Which plots a report has: the curves of training, and how sure each model was against how often it was right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stillroom.contracts.records import ResultRow
from stillroom.report.drawing import (
    BOTTOM,
    LEFT,
    TOP,
    Drawn,
    Plot,
    Point,
    Series,
    Tick,
    Whisker,
    line_plot,
    scale,
    ticks,
)
from stillroom.report.rows import Results, model_name, percent


def training_plots(results: Results, *, soft_only: bool) -> list[Plot]:
    """Each trained model's own curves, then the validation losses of all of them on one scale.

    Args:
        soft_only: the student's training loss is its KL to the teacher and nothing else, so that the validation
            KL belongs beside it. With a second term in the loss, each is drawn by itself.
    """
    trained = [model for model in results.models if results.all(model, "training", "loss")]
    plots = [_own(results, model, soft_only) for model in trained]
    for metric, title, unit in (
        ("validation_loss", "Validation loss, all on one scale", "nats a token"),
        ("validation_kl", "Distance to the teacher on held-back lessons", "KL, nats a token"),
    ):
        curves = [
            Series(model_name(model), _curve(results, model, metric), tone(model))
            for model in results.models
            if results.all(model, "training", metric)
        ]
        if len(curves) > 1 or (curves and metric == "validation_kl" and not soft_only):
            plots.append(line_plot(title, curves, unit))
    return [plot for plot in plots if plot]


def _own(results: Results, model: str, soft_only: bool) -> Plot | None:
    signals = bool(results.all(model, "training", "validation_kl"))
    curves = [Series("training", _curve(results, model, "loss"), "quiet")]
    if soft_only and signals:
        curves.append(Series("validation", _curve(results, model, "validation_kl"), tone(model)))
    elif not signals:
        curves.append(Series("validation", _curve(results, model, "validation_loss"), tone(model)))
    unit = "KL, nats a token" if soft_only and signals else "nats a token"
    return line_plot(f"{model_name(model)}: loss while training", curves, unit)


def _curve(results: Results, model: str, metric: str) -> list[Point]:
    rows = results.all(model, "training", metric)
    return sorted((row.at, row.value) for row in rows if row.at is not None)


def tone(model: str) -> str:
    """The colour of a model's lines."""
    return "accent" if model.startswith("student") else "ink" if model == "teacher" else "quiet"


def reliability_plots(results: Results, task: str) -> list[Plot]:
    """For each model, how often it was right against how sure it said it was."""
    curves = {model: results.all(model, task, "reliability") for model in results.models}
    low = _lowest([row for rows in curves.values() for row in rows])
    return [_reliability(task, model, rows, low) for model, rows in curves.items() if rows]


def _lowest(rows: Sequence[ResultRow]) -> float:
    """Where the axes of all models begin, so that what lies close together in a corner can be told apart."""
    ends = [end for row in rows for end in (row.at, row.value, row.low) if end is not None]
    return max(start for start in (0.0, 0.5, 0.75) if start <= min(ends, default=0.0))


def _reliability(task: str, model: str, rows: Sequence[ResultRow], low: float) -> Plot:
    width, height, right = 320.0, 300.0, 16.0
    rows = sorted((row for row in rows if row.at is not None), key=lambda row: row.at or 0.0)
    x_at = scale(low, 1, LEFT, width - right)
    y_at = scale(low, 1, height - BOTTOM, TOP)
    most = max((row.n for row in rows), default=0) or 1
    shares = [Tick(value, percent(value, 0)) for value in ticks(low, 1.0, 5)]
    words = "; ".join(f"{row.at:.0%} sure, {row.value:.0%} right of {row.n}" for row in rows)
    return Plot(
        title=model_name(model),
        description=f"{model_name(model)} on {task}: {words}.",
        x_label="how sure it was",
        y_label="how often it was right",
        x_ticks=[Tick(x_at(tick.at), tick.text) for tick in shares],
        y_ticks=[Tick(y_at(tick.at), tick.text) for tick in shares],
        lines=[Drawn("", tone(model), _line(rows, x_at, y_at), (0.0, 0.0), 0.0)],
        whiskers=[
            Whisker(
                x_at(row.at or 0.0),
                y_at(row.value),
                None if row.low is None else y_at(row.low),
                None if row.high is None else y_at(row.high),
                round(2 + 3 * math.sqrt(row.n / most), 1),
                f"{row.at:.1%} sure, {row.value:.1%} right, {row.n} answers",
            )
            for row in rows
        ],
        width=width,
        height=height,
        right=right,
    )


def _line(rows: Sequence[ResultRow], x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    return "M" + " L".join(f"{x_at(row.at or 0.0)} {y_at(row.value)}" for row in rows)
