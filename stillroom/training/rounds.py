"""On-policy rounds: when they begin, and which rows a step takes from lessons and from what the student wrote.

The student is trained on what it would itself write, so that it learns to go on from its own mistakes (Agarwal et al.,
On-Policy Distillation of Language Models, arXiv 2306.13649). Optimiser and schedule are one over all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.recipe import Rounds


@dataclass(frozen=True)
class Calendar:
    """At which steps rounds begin.

    Args:
        spec: the recipe's rounds.
        steps: optimiser steps of the whole training.
    """

    spec: Rounds
    steps: int

    def begins(self, number: int) -> int:
        """The step before which the student writes for round `number`, from 1; of the one behind the last, the end."""
        first = round(self.spec.start * self.steps)
        return first + (number - 1) * (self.steps - first) // self.spec.count

    def number(self, step: int) -> int:
        """The round that a step, from 0, belongs to; 0 before the first."""
        return sum(self.begins(number) <= step for number in range(1, self.spec.count + 1))


class OwnWriting:
    """Which rows the steps of rounds are made of: lessons, and what the student wrote lately. Implements `Draws`.

    Args:
        calendar: when rounds begin.
        lessons: how many rows, the first, are lessons.
        written: how many rows the student wrote in each round so far; they follow the lessons in this order.
    """

    def __init__(self, calendar: Calendar, lessons: int, written: Sequence[int]) -> None:
        self.calendar, self.lessons = calendar, lessons
        self._spans = list(pairwise(accumulate(written, initial=lessons)))

    def covers(self, step: int) -> bool:
        """As `Draws.covers`."""
        return self.calendar.number(step) > 0

    def rows(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """As `Draws.rows`: of a step's rows `share` are the student's own, rounded so that it holds over steps."""
        spec = self.calendar.spec
        last = min(self.calendar.number(step), len(self._spans))
        spans = self._spans[max(0, last - spec.buffer) : last]
        own = np.concatenate([np.arange(*span) for span in spans]) if spans else np.arange(0)
        due = int(spec.share * batch_size * (step + 1)) - int(spec.share * batch_size * step)
        due = due if len(own) else 0
        random = np.random.default_rng((seed, step, 2))
        parts = [(own, due), (np.arange(self.lessons), batch_size - due)]
        return np.concatenate([np.resize(random.permutation(rows), count) for rows, count in parts if count])
