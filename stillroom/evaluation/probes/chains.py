"""Chains longer than those trained on: how many steps can be followed before the thread is lost?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from stillroom.checks import strip_reasoning
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Score
from stillroom.evaluation.probes.probe import Found, Given, LongerChains, Material, Probe, share
from stillroom.evaluation.probes.words import NAMES
from stillroom.evaluation.tasks import Item, load_task

COUNTS = (1, 2, 3, 5, 8, 12, 16, 20)
_EACH = 10
_THINGS = ("red key", "blue key")


def read_chains(path: Path, score: Score, trained: int, **asked: Any) -> LongerChains:
    """A file of questions of the run's own kind, whose lines also carry `steps`.

    Args:
        path: JSONL, otherwise as a task's file is.
        score: how their answers are judged.
        trained: the most steps that a lesson takes.
        asked: `system` and `tools`, as `load_task` takes them.

    Raises:
        DataError: the file is missing or empty, or a line is not usable; the message names the line.
    """
    lines = list(read_lines(path))
    steps = [_steps(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    read = load_task(path, score, "chains", lines=lines, **asked)
    return LongerChains(read.items or [], steps, trained)


def _steps(line: Mapping[str, Any], where: str) -> int:
    steps = line.get("steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DataError(
            f"{where}: it is not said how long this chain is",
            got=f"steps: {steps!r}",
            expected="a whole number from 1 upwards",
            do='add "steps" to every line of the file that evaluate.chains names',
        )
    return steps


def chains(material: Material) -> Probe:
    """The run's own questions by their number of steps, where the recipe has a file of them; else made-up hand-overs."""
    return _made_up(material) if material.chains is None else _own(material, material.chains)


def _own(material: Material, chains: LongerChains) -> Probe:
    def measure(given: Given) -> Iterator[Found]:
        right = [verdict.correct for verdict in given.asked]
        yield from _by_steps(right, chains.steps)
        pairs = list(zip(right, chains.steps, strict=True))
        yield from share("right_trained", [one for one, steps in pairs if steps <= chains.trained])
        yield from share("right_longer", [one for one, steps in pairs if steps > chains.trained])

    return Probe("chains", measure, chains.items, material.task.score)


def _made_up(material: Material) -> Probe:
    """A key goes from hand to hand, and a second one between: who has it in the end?"""
    draw = random.Random(material.seed)
    counts = [count for count in COUNTS for _ in range(_EACH)]
    items = [_item(material, draw, count) for count in counts]
    wanted = [item.reference for item in items]

    def measure(given: Given) -> Iterator[Found]:
        told = [
            _last_named(verdict.text) == right for verdict, right in zip(given.asked, wanted, strict=True)
        ]
        yield from _by_steps(told, counts)

    return Probe("chains", measure, items)


def _by_steps(right: Sequence[bool], steps: Sequence[int]) -> Iterator[Found]:
    for count in sorted({*steps}):
        yield from share(
            "right_after", [one for one, of in zip(right, steps, strict=True) if of == count], count
        )


def _item(material: Material, draw: random.Random, steps: int) -> Item:
    """As many hand-overs of the key that is asked for as of the other, in an order that mixes them."""
    lines: list[list[str]] = []
    for thing in _THINGS:
        holders = [draw.choice(NAMES)]
        while len(holders) <= steps:
            holders.append(draw.choice([name for name in NAMES if name != holders[-1]]))
        lines.append([f"{a} hands the {thing} to {b}." for a, b in pairwise(holders)])
    place = draw.randrange(len(_THINGS))
    right = lines[place][-1].split()[-1].rstrip(".")
    turns = [0] * steps + [1] * steps
    draw.shuffle(turns)
    text = " ".join(lines[turn].pop(0) for turn in turns)
    question = f"{text}\n\nWho has the {_THINGS[place]} now?"
    return Item([*material.system, {"role": "user", "content": question}], right)


def _last_named(text: str) -> str | None:
    """The name that an answer ends with: one that works through the hand-overs names many."""
    words = "".join(letter if letter.isalpha() else " " for letter in strip_reasoning(text)).split()
    return next((word for word in reversed(words) if word in NAMES), None)
