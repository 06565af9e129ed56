"""Two runs side by side: what differs in their settings, and every figure that both have.

Quality is compared on the questions that both were asked, item by item; what cannot be compared is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stillroom.contracts.records import ResultRow
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.report.answered import Answers, read_answers
from stillroom.report.rows import Results, data_size, duration, model_name, number, read_results, speed
from stillroom.report.sections import manifests, without_passwords
from stillroom.stats import mcnemar_exact, paired_bootstrap_difference, wilson

ABSENT = "–"


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    run: Run
    label: str

    @cached_property
    def results(self) -> Results:
        """Its evaluation's rows."""
        return Results.of(read_results(self.run.folder("evaluate")))

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """Of its finished stages."""
        return manifests(self.run)

    @cached_property
    def scores(self) -> dict[str, str]:
        """How each task's answers are judged."""
        return {task.title: task.score for task in self.run.recipe.evaluate.tasks}

    def answers(self, model: str) -> Answers:
        """What one of its models answered."""
        return read_answers(self.run.folder("evaluate"), model)


@dataclass(frozen=True)
class Setting:
    """A setting that is not the same in both."""

    label: str
    first: str
    second: str


@dataclass(frozen=True)
class Pair:
    """A model of each run on the same questions of a task."""

    task: str
    first: ResultRow
    second: ResultRow
    difference: ResultRow
    """The second's share of right answers minus the first's."""
    differing: list[dict[str, Any]]
    """The items that only one has right, as lines of samples.jsonl; the models' names are "first" and "second"."""

    @property
    def lost(self) -> int:
        """Items that only the first has right."""
        return sum(line["answers"]["first"]["correct"] for line in self.differing)


@dataclass(frozen=True)
class Figure:
    """A figure of each run as printed, and the numbers; None where a run has none."""

    label: str
    first: str
    second: str
    values: tuple[float | None, float | None]


@dataclass(frozen=True)
class Comparison:
    """All that is to be said about two runs."""

    first: Side
    second: Side
    settings: list[Setting]
    shipped: list[Pair]
    """The models that are handed over, a pair a task."""
    others: list[Pair]
    """Models that have one name in both runs."""
    likelihoods: list[Figure]
    figures: list[Figure]
    apart: list[str]
    """What cannot be compared, and why."""


def compare_runs(first: Run, second: Run) -> Comparison:
    """Hold two evaluated runs together.

    Raises:
        DataError: a file of an evaluation is not readable.
    """
    a, b = _labelled(first, second)
    apart: list[str] = []
    shipped, others = _pairs(a, b, apart)
    return Comparison(
        a, b, _settings(a, b), shipped, others, _likelihoods(a, b, apart), list(_figures(a, b)), apart
    )


def _labelled(first: Run, second: Run) -> tuple[Side, Side]:
    """Each run under the shortest name that tells them apart."""
    ways = (
        lambda run: run.recipe.name,
        lambda run: run.path.name,
        lambda run: run.path.resolve().as_posix().lstrip("/"),
    )
    one, other = next((pair for way in ways if len({*(pair := (way(first), way(second)))}) == 2), ("A", "B"))
    return Side(first, one), Side(second, other)


# What differs in the settings


def _settings(a: Side, b: Side) -> list[Setting]:
    left, right = _flat(a), _flat(b)
    keys = [*left, *(key for key in right if key not in left)]
    return [
        Setting(key, left.get(key, ABSENT), right.get(key, ABSENT))
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _flat(side: Side) -> dict[str, str]:
    """Every setting by its key, the contents of files and the versions of the software among them, as one line of text."""
    tree = side.run.recipe.model_dump(mode="json", exclude={"name"})
    return dict([*_leaves(tree), *_contents(side.manifests), *_versions(side.manifests)])


def _leaves(tree: dict[str, Any], parent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        path = f"{parent}.{key}" if parent else key
        if isinstance(value, dict):
            yield from _leaves(value, path)
        elif value not in (None, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield path, without_passwords(text)


def _contents(found: dict[str, Manifest]) -> Iterator[tuple[str, str]]:
    """Files of one name may hold different things: the beginnings of their digests tell."""
    known: dict[str, Any] = {}
    if prompts := found.get("prompts"):
        known |= {source["file"]: source.get("content") for source in prompts.settings.get("prompts", [])}
    if evaluate := found.get("evaluate"):
        known |= evaluate.settings.get("items", {})
    if teach := found.get("teach"):
        known["the teacher"] = teach.settings.get("teacher", {}).get("content")
        known["the student before training"] = teach.settings.get("student")
    for name, content in known.items():
        if content:
            yield f"content of {name}", str(content)[:12]


def _versions(found: dict[str, Manifest]) -> Iterator[tuple[str, str]]:
    for stage in ("distil", "evaluate"):
        if stage in found:
            for name, version in found[stage].versions.items():
                yield f"{name}, {stage}", version


# Quality on the same questions


def _pairs(a: Side, b: Side, apart: list[str]) -> tuple[list[Pair], list[Pair]]:
    one, other = a.results.shipped, b.results.shipped
    if one is None or other is None:
        apart.append("No quality: one of the runs has measured no model.")
        return [], []
    unread = [side.label for side, model in ((a, one), (b, other)) if not side.answers(model)]
    if unread and (a.results.scored or b.results.scored):
        apart.append(
            f"Quality, item by item: the evaluation of {' and of '.join(unread)} kept no items. "
            "`stillroom eval RUN` writes them; models that were measured are not measured again."
        )
        return [], []
    shipped = list(_paired(a, b, one, other, apart))
    both = [model for model in a.results.models if model in b.results.models]
    others = [
        pair for model in both if (model, model) != (one, other) for pair in _paired(a, b, model, model)
    ]
    return shipped, others


def _paired(a: Side, b: Side, one: str, other: str, apart: list[str] | None = None) -> Iterator[Pair]:
    """Two models on each task of the first run that has questions in common with one of the second."""
    ours, theirs = a.answers(one), b.answers(other)
    said: list[str] = [] if apart is None else apart
    left = {*theirs}
    for task in ours:
        alike = [name for name in theirs if b.scores.get(name) == a.scores.get(task)]
        found = max(
            alike, key=lambda name: (len({*ours[task]} & {*theirs[name]}), name == task), default=None
        )
        shared = [key for key in ours[task] if found is not None and key in theirs[found]]
        if found is None or not shared:
            said.append(
                f"Quality on {task} of {a.label}: {b.label} was asked none of these questions in this way."
            )
            continue
        left.discard(found)
        if len(shared) < max(len(ours[task]), len(theirs[found])):
            said.append(
                f"The other questions of {task}: only {len(shared):,} were asked in both runs "
                f"({len(ours[task]):,} in {a.label}, {len(theirs[found]):,} in {b.label})."
            )
        yield _pair(task, a, b, one, other, [(ours[task][key], theirs[found][key]) for key in shared])
    said.extend(
        f"Quality on {task} of {b.label}: {a.label} was asked none of these questions in this way."
        for task in theirs
        if task in left
    )


def _pair(task: str, a: Side, b: Side, one: str, other: str, items: list[tuple[Any, Any]]) -> Pair:
    ours, theirs = [x.correct for x, _ in items], [y.correct for _, y in items]
    n = len(items)
    first = ResultRow(one, task, "exact", *wilson(sum(ours), n), n=n)
    second = ResultRow(other, task, "exact", *wilson(sum(theirs), n), n=n)
    pairs = list(zip(ours, theirs, strict=True))
    p = mcnemar_exact(pairs.count((False, True)), pairs.count((True, False)))
    change = paired_bootstrap_difference(theirs, ours, a.run.recipe.seed)
    differing = [
        {
            "task": task,
            "messages": x.messages,
            "reference": x.reference,
            "answers": {"first": x.verdict, "second": y.verdict},
        }
        for x, y in items
        if x.correct != y.correct
    ]
    return Pair(
        task, first, second, ResultRow(other, task, "difference", *change, n=n, versus=one, p=p), differing
    )


def _likelihoods(a: Side, b: Side, apart: list[str]) -> list[Figure]:
    """Loss and KL on held-out lessons, where these are the same."""
    tasks = [
        task
        for task in a.results.tasks
        if task in b.results.tasks and a.results.having(task, "loss") and b.results.having(task, "loss")
    ]
    if not tasks:
        return []
    lessons = [
        side.manifests["evaluate"].inputs.get("filter") if "evaluate" in side.manifests else None
        for side in (a, b)
    ]
    if lessons[0] is None or lessons[0] != lessons[1]:
        apart.append(
            f"Loss and KL on {', '.join(tasks)}: each run predicts its own lessons, and these are not the same."
        )
        return []
    found = []
    for task in tasks:
        for model in a.results.models:
            for metric, name in (("loss", "loss"), ("kl", "KL to the teacher")):
                values = a.results.value(model, task, metric), b.results.value(model, task, metric)
                if None not in values:
                    found.append(
                        _figure(
                            f"{model_name(model)}: {name} on {task}, nats a token",
                            values,
                            lambda v: f"{v:.3g}",
                        )
                    )
    return found


# Cost, size, speed


def _figures(a: Side, b: Side) -> Iterator[Figure]:
    """What each run's model weighs and what it took to make; a line that neither fills is left out."""
    for label, task, metric, show in _COSTS:
        values = tuple(
            side.results.value(model, task, metric) if (model := side.results.shipped) else None
            for side in (a, b)
        )
        if any(values):
            yield _figure(label, values, show)
    for label, stage, keys, show in _COUNTS:
        values = tuple(_count(side, stage, keys) for side in (a, b))
        if any(values):
            yield _figure(label, values, show)
    values = tuple(sum(found.seconds for found in side.manifests.values()) or None for side in (a, b))
    if any(values):
        yield _figure("time of all stages", values, duration)


_COSTS = (
    ("size of the file", "size", "file_bytes", data_size),
    ("parameters", "size", "parameters", number),
    ("peak memory", "size", "peak_memory_bytes", data_size),
    ("tokens a second", "speed", "tokens_per_second", speed),
    ("questions a second", "speed", "questions_per_second", speed),
)
_COUNTS = (
    ("answers of the teacher", "teach", ("answers",), number),
    ("lessons", "filter", ("lessons",), number),
    ("US dollars for the teacher’s answers", "teach", ("dollars",), lambda value: f"{value:,.2f}"),
    ("US dollars for the judge", "filter", ("judge", "dollars"), lambda value: f"{value:,.2f}"),
    ("steps of training", "distil", ("models", "student", "steps"), number),
)


def _count(side: Side, stage: str, keys: tuple[str, ...]) -> float | None:
    found: Any = side.manifests[stage].counts if stage in side.manifests else None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _figure(label: str, values: Any, show: Any) -> Figure:
    first, second = (ABSENT if value is None else show(value) for value in values)
    return Figure(label, first, second, values)
