"""The rows of evaluate/results.json, in the order in which people want to read them, and the words for their figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stillroom.contracts.files import read_json
from stillroom.contracts.records import PROBE, ResultRow, from_line

_ORDER = ("first-teacher", "teacher", "before", "labels-only", "answers-only")
_NAMES = {
    "first-teacher": "The chain’s first teacher",
    "teacher": "Teacher",
    "before": "Student before training",
    "labels-only": "Trained on labels only",
    "answers-only": "Trained on answers only",
    "student": "Student",
}
_OWNERS = ("teacher", "student", "before", "labels-only", "answers-only")
"""Models that files are made of."""
_MEASURES = {"speed", "size", "training"}
_METRICS = {"exact": "exact answers", "valid_json": "valid JSON", "loss": "loss", "kl": "KL to the teacher"}


@dataclass(frozen=True)
class Results:
    """Every figure of an evaluation, looked up by model, task and metric."""

    rows: tuple[ResultRow, ...]

    @staticmethod
    def of(rows: Iterable[ResultRow]) -> Results:
        """From rows in any order."""
        return Results(tuple(rows))

    @cached_property
    def _index(self) -> dict[tuple[str, str, str], list[ResultRow]]:
        index: dict[tuple[str, str, str], list[ResultRow]] = {}
        for row in self.rows:
            index.setdefault((row.model, row.task, row.metric), []).append(row)
        return index

    @cached_property
    def models(self) -> list[str]:
        """The models measured: teacher, baselines, student, each with its files behind it, smallest last."""
        found = list(dict.fromkeys(row.model for row in self.rows))
        return sorted(found, key=self._place)

    def _place(self, model: str) -> tuple[float, float, str]:
        if model in _ORDER:
            return _ORDER.index(model), 0, model
        owner = next((name for name in _ORDER if model.startswith(f"{name}-")), None)
        if owner is not None:
            return _ORDER.index(owner) + 0.5, -self._bytes(model), model
        if model == "student":
            return len(_ORDER) + 1, 0, model
        if is_file(model):
            return len(_ORDER) + 2, -self._bytes(model), model
        return len(_ORDER), 0, model

    def _bytes(self, model: str) -> float:
        return self.value(model, "size", "file_bytes") or 0

    @cached_property
    def tasks(self) -> list[str]:
        """What the models were measured on, as the recipe orders it; sizes, speed, training and probes left out."""
        tasks = dict.fromkeys(row.task for row in self.rows if row.task not in _MEASURES)
        return [task for task in tasks if not task.startswith(PROBE)]

    @cached_property
    def probes(self) -> list[str]:
        """The probes of what is lost that were made, by name."""
        tasks = dict.fromkeys(row.task for row in self.rows)
        return [task.removeprefix(PROBE) for task in tasks if task.startswith(PROBE)]

    @property
    def scored(self) -> list[str]:
        """The tasks whose answers are right or wrong."""
        return [task for task in self.tasks if self.having(task, "exact")]

    def all(self, model: str, task: str, metric: str) -> list[ResultRow]:
        """Every such row: the points of a curve."""
        return self._index.get((model, task, metric), [])

    def find(self, model: str, task: str, metric: str) -> ResultRow | None:
        """The one such row, or None."""
        found = self.all(model, task, metric)
        return found[0] if found else None

    def value(self, model: str, task: str, metric: str) -> float | None:
        """The one such figure, or None."""
        row = self.find(model, task, metric)
        return row.value if row else None

    def having(self, task: str, metric: str) -> list[ResultRow]:
        """The first such row of each model that has one, in the order of `models`."""
        rows = (self.find(model, task, metric) for model in self.models)
        return [row for row in rows if row is not None]

    def metrics(self, task: str) -> list[str]:
        """The metrics of a task, in their order of appearance."""
        return list(dict.fromkeys(row.metric for row in self.rows if row.task == task))

    def passes(self, task: str) -> list[int]:
        """How many answers to a question count, of a task that was answered several times: the k of its pass@k rows."""
        found = (metric.removeprefix("pass@") for metric in self.metrics(task) if metric.startswith("pass@"))
        return sorted(map(int, found))

    def difference(self, task: str, model: str, versus: str, metric: str = "difference") -> ResultRow | None:
        """The paired comparison of two models on a task, or None."""
        rows = self.all(model, task, metric)
        return next((row for row in rows if row.versus == versus), None)

    @cached_property
    def shipped(self) -> str | None:
        """The model that a reader would run: the smallest measured file of the student, else the student."""
        measured = {row.model for row in self.rows if row.task in self.tasks}
        files = [model for model in self.models if is_file(model)]
        files = [model for model in files if model in measured] or files
        if files:
            return files[-1]
        return "student" if "student" in self.models else None


def read_results(folder: Path) -> list[ResultRow]:
    """The rows of results.json in an evaluation's folder; none where it is absent.

    Raises:
        DataError: the file is not JSON.
    """
    path = folder / "results.json"
    if not path.is_file():
        return []
    return [from_line(ResultRow, line) for line in read_json(path)]


def is_file(model: str) -> bool:
    """Whether the model is a GGUF file of the student."""
    return model.startswith("student-")


def model_name(model: str) -> str:
    """What people call it: `Student, Q4_K_M file`."""
    owner = next((name for name in _OWNERS if model.startswith(f"{name}-")), None)
    if owner is not None and model not in _NAMES:
        return f"{_NAMES[owner]}, {model.removeprefix(f'{owner}-')} file"
    return _NAMES.get(model, model)


def metric_name(metric: str) -> str:
    """What people call it: `order` for `field:order`."""
    return _METRICS.get(metric, metric.removeprefix("field:"))


def percent(share: float, digits: int = 1) -> str:
    """0.912 as 91.2%. What is not quite all or nothing never reads as all or nothing."""
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    text = f"{100 * share:.{digits}f}"
    if float(text) in (0, 100):
        text = f"{100 * share:.{digits + 2}f}"
    return f"{text}%"


def points(difference: float) -> str:
    """0.031 as +3.1 points, with a true minus sign."""
    text = f"{100 * difference:+.1f}"
    return f"{'0.0' if float(text) == 0 else text.replace('-', '−')} points"


def span(row: ResultRow, digits: int = 1) -> str | None:
    """A row's interval in percent, or None where it has none."""
    if row.low is None or row.high is None:
        return None
    return f"{100 * row.low:.{digits}f} to {100 * row.high:.{digits}f}%"


def data_size(count: float) -> str:
    """Bytes in decimal units, as files are sold: 2.1 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{count:.0f} bytes"


def people_count(count: float) -> str:
    """28,536,832 as 28.5 million."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"


def number(value: float) -> str:
    """Whole numbers in full with separators, others to four significant figures."""
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def nats(value: float) -> str:
    """Losses, divergences and perplexities to three significant figures, never as powers of ten: 0.000028, 31.2, 12,300."""
    if not value or abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    decimals = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:.{min(max(decimals, 1), _FINEST)}f}".rstrip("0").rstrip(".")
    return text if float(text) else "0"


_FINEST = 6
"""Decimals beyond which a loss is not told."""


def change(value: float) -> str:
    """A difference of losses or divergences, with its sign."""
    text = nats(value).replace("-", "−")
    return f"+{text}" if value > 0 and text != "0" else text


def milliseconds(value: float) -> str:
    """A wait: 8.4 ms, 340 ms, 2.1 s."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def joules(value: float) -> str:
    """An energy: 0.42 J, 18 J."""
    return f"{value:.0f} J" if value >= 10 else f"{value:.2g} J"


def speed(tokens_per_second: float) -> str:
    """Tokens a second without false precision."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.1f}"


def duration(seconds: float) -> str:
    """3725 as 1 h 2 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def chance(p: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def times(ratio: float) -> str:
    """8.93 as 8.9, 31.2 as 31."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
