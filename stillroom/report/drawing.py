"""Line plots as plain geometry: the template draws them as inline SVG, so that the page needs no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillroom.report.rows import number

LEFT, TOP, BOTTOM = 44.0, 18.0, 40.0
"""Margins that hold the axes' texts, pixels."""
_LETTER = 6.9
"""Width of a letter in the names beside the lines, pixels; generous, since every system has its own font."""
_MOST_POINTS = 200
_LOG_FROM = 30.0
_LINE = 15.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a plot, named where it ends. `tone` is "accent", "ink" or "quiet"."""

    label: str
    points: Sequence[Point]
    tone: str = "ink"


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: its place in pixels and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A line in pixels and where its name stands."""

    label: str
    tone: str
    path: str
    end: Point
    label_at: float


@dataclass(frozen=True)
class Whisker:
    """A point of a reliability curve in pixels, with its interval and a size that grows with its answers."""

    x: float
    y: float
    low: float | None
    high: float | None
    radius: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A plot ready to be drawn; `description` says in words what it shows."""

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Drawn]
    whiskers: list[Whisker]
    width: float
    height: float
    right: float
    left: float = LEFT
    top: float = TOP
    bottom: float = BOTTOM


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values that cover a range, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for size in (1, 2, 2.5, 5, 10) if (step := size * power) >= rough)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    found = [
        size * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for size in (1, 2, 5)
        if low <= size * 10.0**power <= high
    ]
    return found if len(found) <= 6 else found[:: math.ceil(len(found) / 6)]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most 200 points: means of equal numbers of neighbours, so that a long, noisy curve keeps its course."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    width = math.ceil(len(points) / _MOST_POINTS)
    groups = (points[start : start + width] for start in range(0, len(points), width))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def line_plot(
    title: str,
    series: Sequence[Series],
    y_label: str,
    x_label: str = "training step",
    *,
    most: float | None = None,
) -> Plot | None:
    """A plot of curves, or None where there is nothing to draw.

    Args:
        title: of the plot.
        series: a line each, named where it ends.
        y_label: what is measured, with its unit.
        x_label: what it is measured over.
        most: the upper end of the y axis, for shares; None: the largest value.

    Not-finite points are left out. The scale is logarithmic where the curves span more than a factor of 30.
    """
    kept = [
        Series(s.label, thin([p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])]), s.tone)
        for s in series
    ]
    kept = [s for s in kept if s.points]
    if not kept:
        return None
    width, height = 440.0, 270.0
    right = 14 + _LETTER * max(len(s.label) for s in kept)
    xs, ys = ([p[axis] for s in kept for p in s.points] for axis in (0, 1))
    log = most is None and min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM
    low, high = (min(ys), max(ys)) if log else (min(0.0, *ys), most or max(ys))
    x_at = scale(min(0.0, *xs), max(xs), LEFT, width - right)
    y_at = scale(low, high, height - BOTTOM, TOP, log)
    marks = _log_ticks(low, high) if log else ticks(low, high)
    drawn = _draw(kept, x_at, y_at, height - BOTTOM - 4)
    ends = "; ".join(
        f"{s.label} goes from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in kept
    )
    return Plot(
        title=title,
        description=f"{title}, by {x_label}, up to {number(max(xs))}: {ends}.",
        x_label=x_label,
        y_label=f"{y_label}, log scale" if log else y_label,
        x_ticks=[Tick(x_at(value), number(value)) for value in ticks(min(0.0, *xs), max(xs))],
        y_ticks=[Tick(y_at(value), number(value)) for value in marks],
        lines=drawn,
        whiskers=[],
        width=width,
        height=height,
        right=right,
    )


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """What takes a value from low to high to its place from start to end, in pixels."""
    change = math.log10 if log else float
    first, last = change(low), change(high)
    length = (last - first) or 1.0
    return lambda value: round(start + (change(value) - first) / length * (end - start), 1)


def _draw(
    series: Sequence[Series], x_at: Callable[[float], float], y_at: Callable[[float], float], lowest: float
) -> list[Drawn]:
    """Lines in pixels; the names at their ends are moved apart until each has a line to itself."""
    ends = [(x_at(s.points[-1][0]), y_at(s.points[-1][1])) for s in series]
    order = sorted(range(len(series)), key=lambda index: ends[index][1])
    at: dict[int, float] = {}
    room = lowest
    for index in reversed(order):
        at[index] = room = min(ends[index][1], room)
        room -= _LINE
    previous = -math.inf
    for index in order:
        at[index] = previous = max(at[index], previous + _LINE)
    drawn = []
    for index, s in enumerate(series):
        path = "M" + " L".join(f"{x_at(x)} {y_at(y)}" for x, y in s.points)
        drawn.append(Drawn(s.label, s.tone, path, ends[index], round(at[index], 1)))
    return drawn
