"""The fitted cascade: what it promises, and quality against the share of questions that goes to the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.contracts.files import read_json
from stillroom.contracts.records import ResultRow
from stillroom.contracts.runfolder import Run
from stillroom.report.decision import Fitted
from stillroom.report.drawing import BOTTOM, LEFT, TOP, Drawn, Plot, Tick, scale, ticks
from stillroom.report.rows import Results, model_name, percent, read_results
from stillroom.report.sections import Fact

_TASK = "cascade"
_CURVES = {"quality": "accent", "quality:oracle": "ink", "quality:random": "quiet"}


@dataclass(frozen=True)
class Routed:
    """What the route stage found."""

    model: str
    says: list[str]
    """The promise, or why there is none, in sentences."""
    facts: list[Fact]
    plot: Plot | None


def routed(run: Run) -> Routed | None:
    """Of a run whose route stage has finished; else None.

    Raises:
        DataError: a file of the stage is not readable.
    """
    if run.manifest("route") is None:
        return None
    folder = run.folder("route")
    results = Results.of(read_results(folder))
    model = results.models[0]
    says = [str(sentence) for sentence in read_json(folder / "cascade.json")["says"]]
    return Routed(model, says, _facts(results, model), _plot(results, model))


def fitted(run: Run) -> Fitted | None:
    """What the run's cascade keeps of the teacher; None where there is none, or where it promises nothing.

    Raises:
        DataError: a file of the stage is not readable.
    """
    if run.manifest("route") is None:
        return None
    results = Results.of(read_results(run.folder("route")))
    model = results.models[0]
    error, sent = (results.find(model, _TASK, metric) for metric in ("kept_error", "escalated"))
    told = _points(results.all(model, _TASK, "quality"))
    if error is None or error.high is None or sent is None or not told or not told[-1][1]:
        return None
    teacher = told[-1][1]
    share = min(told, key=lambda point: abs(point[0] - sent.value))
    return Fitted(sent.value, share[1] / teacher, (teacher - error.high * (1 - sent.value)) / teacher)


def _facts(results: Results, model: str) -> list[Fact]:
    found = []
    if row := results.find(model, _TASK, "escalated"):
        found.append(Fact("questions that go to the teacher", percent(row.value)))
    if row := results.find(model, _TASK, "apgr"):
        found.append(
            Fact("of the gap to the teacher closed, mean over all shares sent on", percent(row.value))
        )
    found += [
        Fact(f"sent on to close {percent(row.at or 0, 0)} of the gap", percent(row.value))
        for row in results.all(model, _TASK, "cpt")
    ]
    return found


def _plot(results: Results, model: str) -> Plot | None:
    curves = {metric: _points(results.all(model, _TASK, metric)) for metric in _CURVES}
    heights = [height for points in curves.values() for _, height in points]
    if not heights or min(heights) == max(heights):
        return None
    width, height, right = 440.0, 270.0, 16.0
    x_at = scale(0, 1, LEFT, width - right)
    y_at = scale(min(heights), max(heights), height - BOTTOM, TOP)
    ends = {metric: points[-1] for metric, points in curves.items() if points}
    told = curves["quality"]
    return Plot(
        title=f"{model_name(model)} with its teacher",
        description="Right answers against the share sent on: "
        + "; ".join(
            f"{percent(share, 0)} sent on, {percent(right_share)}" for share, right_share in told[::5]
        ),
        x_label="questions sent to the teacher",
        y_label="right answers of both together",
        x_ticks=[Tick(x_at(share), percent(share, 0)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_ticks=[Tick(y_at(value), percent(value)) for value in ticks(min(heights), max(heights))],
        lines=[
            Drawn(
                "",
                _CURVES[metric],
                "M" + " L".join(f"{x_at(x)} {y_at(y)}" for x, y in points),
                (x_at(ends[metric][0]), y_at(ends[metric][1])),
                0.0,
            )
            for metric, points in curves.items()
            if points
        ],
        whiskers=[],
        width=width,
        height=height,
        right=right,
    )


def _points(rows: Sequence[ResultRow]) -> list[tuple[float, float]]:
    return sorted((row.at, row.value) for row in rows if row.at is not None)
