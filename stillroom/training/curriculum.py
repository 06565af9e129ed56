"""Easy lessons first: which rows a step may draw from while the training is young.

The share of the lessons that are open grows with the root of the steps done (Platanios et al., Competence-based Curriculum
Learning for Neural Machine Translation, arXiv 1903.09848).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from stillroom.losses import SparseTargets
from stillroom.training.batches import RowSource


def difficulty(rows: RowSource, by: str) -> NDArray[np.float64]:
    """How hard each row is, float64 `[rows]`.

    Args:
        rows: lengths, and for "doubt" the rows themselves, which are read once.
        by: "length", in tokens, or "doubt", the teacher's mean entropy over the tokens that are learned, nats.

    Raises:
        ValueError: doubt is asked for and a row has no signals that know it.
    """
    if by == "length":
        return rows.lengths.astype(np.float64)
    found = np.empty(len(rows.lengths))
    for index in range(len(found)):
        targets = rows[index].targets
        if not isinstance(targets, SparseTargets):
            raise ValueError("how much the teacher doubted is known from the sparse signals of a book only")
        found[index] = float(targets.entropy.mean()) if targets.tokens else 0.0
    return found


@dataclass(frozen=True)
class EasyFirst:
    """Which rows the early steps draw from.

    Args:
        order: rows from easy to hard, int `[rows]`.
        start: share of the rows that are open at the first step.
        steps: from this step on all rows are open.
    """

    order: NDArray[np.int64]
    start: float
    steps: int

    @classmethod
    def of(cls, hardness: NDArray[np.float64], *, start: float, steps: int) -> EasyFirst:
        """By the hardness of each row; equal ones in their own order."""
        return cls(np.argsort(hardness, kind="stable"), start, steps)

    def open(self, step: int) -> NDArray[np.int64]:
        """The rows that a step may draw from, at least one."""
        done = min(step / max(self.steps, 1), 1.0)
        share = np.sqrt(done * (1 - self.start**2) + self.start**2)
        return self.order[: max(1, ceil(share * len(self.order)))]

    def covers(self, step: int) -> bool:
        """As `Draws.covers`."""
        return step < self.steps

    def rows(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """As `Draws.rows`."""
        # The order of an epoch is seeded by its number; a step of its own kind has a third number.
        return np.resize(np.random.default_rng((seed, step, 1)).permutation(self.open(step)), batch_size)
