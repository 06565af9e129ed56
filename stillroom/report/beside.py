"""Two runs side by side: what differs in their settings, and every figure that both have.

Quality is compared on the questions that both were asked, item by item; what cannot be compared is said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.contracts.records import ResultRow
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.report.answered import Answered
from stillroom.report.figures import costs, likelihoods, probes
from stillroom.report.sections import without_passwords
from stillroom.report.sides import ABSENT, Figure, Side
from stillroom.stats import (
    bootstrap_mean,
    mcnemar_exact,
    paired_bootstrap_difference,
    pass_at_k,
    sign_flip,
    wilson,
)

Both = tuple[Answered, Answered]
"""What a model of each run made of one question."""


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
class Comparison:
    """All that is to be said about two runs."""

    first: Side
    second: Side
    settings: list[Setting]
    shipped: list[Pair]
    """The models that are handed over, a pair a task."""
    others: list[Pair]
    """Models that have one name in both runs."""
    tries: list[Pair]
    """pass@k of the models that are handed over, on questions that both answered several times."""
    likelihoods: list[Figure]
    probes: list[Figure]
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
    shipped, others, tries = _pairs(a, b, apart)
    return Comparison(
        first=a,
        second=b,
        settings=_settings(a, b),
        shipped=shipped,
        others=others,
        tries=tries,
        likelihoods=likelihoods(a, b, apart),
        probes=probes(a, b, apart),
        figures=list(costs(a, b)),
        apart=apart,
    )


def _labelled(first: Run, second: Run) -> tuple[Side, Side]:
    """Each run under the shortest name that tells them apart."""
    shared = os.path.commonpath([first.path.resolve(), second.path.resolve()])
    ways = (
        lambda run: run.recipe.name,
        lambda run: run.path.name,
        lambda run: run.path.resolve().relative_to(shared).as_posix(),
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


def _pairs(a: Side, b: Side, apart: list[str]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    one, other = a.results.shipped, b.results.shipped
    if one is None or other is None:
        apart.append("No quality: one of the runs has measured no model.")
        return [], [], []
    unread = [side.label for side, model in ((a, one), (b, other)) if not side.answers(model)]
    if unread and (a.results.scored or b.results.scored):
        apart.append(
            f"Quality, item by item: the evaluation of {' and of '.join(unread)} kept no items. "
            "`stillroom eval RUN` writes them; models that were measured are not measured again."
        )
        return [], [], []
    seed, shared = a.run.recipe.seed, dict(_shared(a, b, one, other, apart))
    both = [model for model in a.results.models if model in b.results.models]
    return (
        [_pair(task, one, other, items, seed) for task, items in shared.items()],
        [
            _pair(task, model, model, items, seed)
            for model in both
            if (model, model) != (one, other)
            for task, items in _shared(a, b, model, model, [])
        ],
        [pair for task, items in shared.items() for pair in _tries(task, one, other, items, seed)],
    )


def _shared(a: Side, b: Side, one: str, other: str, apart: list[str]) -> Iterator[tuple[str, list[Both]]]:
    """Two models on each task of the first run that has questions in common with one of the second."""
    ours, theirs = a.answers(one), b.answers(other)
    left = {*theirs}
    for task in ours:
        alike = [name for name in theirs if b.scores.get(name) == a.scores.get(task)]
        found = max(
            alike, key=lambda name: (len({*ours[task]} & {*theirs[name]}), name == task), default=None
        )
        shared = [key for key in ours[task] if found is not None and key in theirs[found]]
        if found is None or not shared:
            apart.append(
                f"Quality on {task} of {a.label}: {b.label} was asked none of these questions in this way."
            )
            continue
        left.discard(found)
        if len(shared) < max(len(ours[task]), len(theirs[found])):
            apart.append(
                f"The other questions of {task}: only {len(shared):,} were asked in both runs "
                f"({len(ours[task]):,} in {a.label}, {len(theirs[found]):,} in {b.label})."
            )
        yield task, [(ours[task][key], theirs[found][key]) for key in shared]
    apart.extend(
        f"Quality on {task} of {b.label}: {a.label} was asked none of these questions in this way."
        for task in theirs
        if task in left
    )


def _pair(task: str, one: str, other: str, items: Sequence[Both], seed: int) -> Pair:
    ours, theirs = [x.correct for x, _ in items], [y.correct for _, y in items]
    n = len(items)
    first = ResultRow(one, task, "exact", *wilson(sum(ours), n), n=n)
    second = ResultRow(other, task, "exact", *wilson(sum(theirs), n), n=n)
    pairs = list(zip(ours, theirs, strict=True))
    p = mcnemar_exact(pairs.count((False, True)), pairs.count((True, False)))
    change = paired_bootstrap_difference(theirs, ours, seed)
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


def _tries(task: str, one: str, other: str, items: Sequence[Both], seed: int) -> Iterator[Pair]:
    """pass@1 and pass@k of all tries, where both models answered each question several times."""
    tries = [(x.tries, y.tries) for x, y in items if x.tries and y.tries]
    if not tries:
        return
    n, most = len(tries), min(len(several) for pair in tries for several in pair)
    for k in sorted({1, most}):
        ours, theirs = (
            [pass_at_k(len(several), sum(several), k) for several in side]
            for side in zip(*tries, strict=True)
        )
        change = [later - earlier for earlier, later in zip(ours, theirs, strict=True)]
        first, second = (
            ResultRow(model, task, f"pass@{k}", *bootstrap_mean(chances, seed), n=n)
            for model, chances in ((one, ours), (other, theirs))
        )
        difference = ResultRow(
            other,
            task,
            f"difference:pass@{k}",
            *bootstrap_mean(change, seed),
            n=n,
            versus=one,
            p=sign_flip(change, seed),
        )
        yield Pair(task, first, second, difference, [])
