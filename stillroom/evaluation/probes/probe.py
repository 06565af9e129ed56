"""What a probe is: questions of its own, or none, and what a model's answers say about what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from stillroom.checks import strip_reasoning
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import ProbeName, Score
from stillroom.contracts.records import Message
from stillroom.evaluation.scoring import Verdict
from stillroom.evaluation.tasks import EvaluationTask, Item
from stillroom.stats import Interval, wilson

_REFUSED = "refused by the provider"


@dataclass(frozen=True)
class LongerChains:
    """Questions of the run's own kind whose number of steps is known, and how many those of the lessons take at most."""

    items: list[Item]
    steps: list[int]
    """Of each item."""
    trained: int


@dataclass(frozen=True)
class Material:
    """What the probes of a run are made from: its own questions, its lessons, and what its teacher refused."""

    task: EvaluationTask
    """The first task whose questions get one written answer each."""
    filtered: Path
    """The filter stage's folder."""
    refusal: Callable[[str], str | None]
    """The words by which an answer refuses the request, or None."""
    seed: int = 0
    chains: LongerChains | None = None
    """Longer questions of the run's own kind, where the recipe has a file of them."""

    @property
    def items(self) -> list[Item]:
        """The questions of the task."""
        return self.task.items or []

    @property
    def system(self) -> list[Message]:
        """The system prompt that the run's questions have."""
        return [turn for turn in self.items[0].messages[:1] if turn["role"] == "system"]

    @cached_property
    def lessons(self) -> list[str]:
        """The answers that were trained on, without their reasoning."""
        return [
            strip_reasoning(line["messages"][-1].get("content") or "")
            for line in _lines(self.filtered / "lessons.jsonl")
            if line.get("split", "train") == "train" and line["messages"][-1]["role"] == "assistant"
        ]

    @cached_property
    def refused(self) -> list[list[Message]]:
        """The questions that the teacher refused, each once."""
        found: dict[str, list[Message]] = {}
        for line in _lines(self.filtered / "rejected.jsonl"):
            if line["reason"] == _REFUSED:
                turns = line["messages"]
                found[line["id"]] = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        return list(found.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from read_lines(path)


@dataclass(frozen=True)
class Given:
    """One model's verdicts."""

    own: Sequence[Verdict]
    """On the run's own questions."""
    asked: Sequence[Verdict]
    """On the probe's questions."""
    teacher: Sequence[Verdict]
    """The teacher's on the run's own questions; empty where it was not measured."""
    seed: int = 0


class Found(NamedTuple):
    """A figure of a probe; `at` places a point of a curve."""

    metric: str
    interval: Interval
    n: int
    at: float | None = None


@dataclass(frozen=True)
class Probe:
    """One way to look at what was lost."""

    name: ProbeName
    measure: Callable[[Given], Iterator[Found]]
    items: list[Item] = field(default_factory=list)
    score: Score = "exact"
    """How the answers to `items` are judged; a probe that reads their texts itself leaves it."""


class Unsuited(Exception):
    """This run has nothing that the probe could be made from; the message says what is missing."""


def share(metric: str, found: Sequence[bool], at: float | None = None) -> Iterator[Found]:
    """The share of what is true, if there is anything."""
    if found:
        yield Found(metric, wilson(sum(found), len(found)), len(found), at)


def last_turn(item: Item) -> str:
    """What the user says last."""
    return next((turn["content"] or "" for turn in reversed(item.messages) if turn["role"] == "user"), "")


def with_last_turn(item: Item, text: str) -> list[Message]:
    """The item's messages, the user's last turn replaced."""
    place = max(index for index, turn in enumerate(item.messages) if turn["role"] == "user")
    return [turn | {"content": text} if index == place else turn for index, turn in enumerate(item.messages)]
