"""From lessons to steps: rows, and the plan of which row is in which step."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from stillroom.losses import SparseTargets
from stillroom.signals.hidden import HiddenSignals

Targets = SparseTargets | HiddenSignals
"""What a row may know of its teacher: a few weighted tokens at each position, or the last hidden states."""


@dataclass(frozen=True)
class TrainingRow:
    """One lesson as tokens: `ids` int [L], `mask` bool [L] (True: this token is predicted), its signals or None."""

    ids: np.ndarray
    mask: np.ndarray
    targets: Targets | None = None


class RowSource(Protocol):
    """Where rows come from: a lesson book or memory. `lengths` is int [rows]."""

    lengths: np.ndarray

    def __getitem__(self, index: int) -> TrainingRow:
        """The row at an index."""
        ...


class MemoryRows:
    """Rows without signals in two flat arrays, five bytes a token; each is read once, from ids and a mask."""

    def __init__(self, rows: Iterable[tuple[Iterable[int], Iterable[bool]]]) -> None:
        lengths, ids, mask = array("q"), array("i"), bytearray()
        for row, chosen in rows:
            before = len(ids)
            ids.extend(row)
            mask.extend(chosen)
            lengths.append(len(ids) - before)
        self.lengths = np.array(lengths, dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._ids, self._mask = np.frombuffer(ids, dtype=np.int32), np.frombuffer(mask, dtype=bool)

    def __getitem__(self, index: int) -> TrainingRow:
        span = slice(self._offsets[index], self._offsets[index + 1])
        return TrainingRow(self._ids[span], self._mask[span])


class JoinedRows:
    """Several row sources as one, in their order.

    Args:
        sources: at least one.
    """

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self.sources = list(sources)
        self.lengths = np.concatenate([source.lengths for source in self.sources])
        self._ends = np.cumsum([len(source.lengths) for source in self.sources])

    def __getitem__(self, index: int) -> TrainingRow:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[place][index - (int(self._ends[place - 1]) if place else 0)]


class Rows(Dataset[TrainingRow]):
    """A torch view of a row source."""

    def __init__(self, source: RowSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.lengths)

    def __getitem__(self, index: int) -> TrainingRow:
        return self.source[index]


class Draws(Protocol):
    """Steps whose rows are drawn each for itself, instead of epoch by epoch."""

    def covers(self, step: int) -> bool:
        """Whether this step, counted from 0, is such a one."""
        ...

    def rows(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """The rows of a step, int [batch_size]; the same for the same arguments."""
        ...


@dataclass(frozen=True)
class Beside:
    """Rows that every step takes beside its own: the last of all rows, gone through again and again.

    Args:
        rows: how many there are, at least 1.
        each: how many of them a step takes.
    """

    rows: int
    each: int

    def steps(self, first: int, seed: int) -> Iterator[np.ndarray]:
        """Those of each step, int [each], without end; `first` is the index of the first of them."""
        waiting = np.arange(0)
        for epoch in itertools.count():
            order = first + np.random.default_rng((seed, epoch, 3)).permutation(self.rows)
            waiting = np.concatenate([waiting, order])
            while len(waiting) >= self.each:
                yield waiting[: self.each]
                waiting = waiting[self.each :]


class StepPlan(Sampler[list[int]]):
    """Which rows are in which micro-batch, for the whole training, decided by the seed alone.

    Each epoch is shuffled and cut into optimiser steps of `batch_size` rows, so that a step's rows are a uniform
    sample: rows of like length in one step would tilt its gradient. Only inside the step are rows sorted by length
    and cut into micro-batches. Rows that do not fill a step are left out of that epoch, others in each. One iteration
    of this sampler is the whole training: a resumed run skips the micro-batches that were done and sees the same
    rest. `draws` have steps of their own.

    Args:
        lengths: tokens of each row, int [rows].
        batch_size: rows of an optimiser step, over all micro-batches and ranks.
        micro_batch_size: rows of one forward pass at most, or one more where ranks do not divide a step.
        steps: optimiser steps of the whole training.
        seed: decides the order.
        rank: whose micro-batches are given.
        ranks: how many processes share a step; each has as many micro-batches.
        draws: who decides on some of the steps instead; the first that covers a step.
        beside: rows that each step takes besides, which belong to no epoch; their lengths are the last.

    Raises:
        ValueError: no rows, or a step with fewer rows than ranks.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int,
        micro_batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        draws: Sequence[Draws] = (),
        beside: Beside | None = None,
    ) -> None:
        self._own = len(lengths) - (beside.rows if beside else 0)
        if self._own <= 0:
            raise ValueError("no rows to train on")
        if batch_size < ranks:
            raise ValueError(f"a step of {batch_size} rows cannot be shared by {ranks} ranks")
        self.lengths, self.steps, self.seed, self.rank, self.ranks = lengths, steps, seed, rank, ranks
        self.batch_size, self.micro = batch_size, min(micro_batch_size, batch_size)
        self.draws, self.beside = draws, beside

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one optimiser step on one rank, as few as the step's rows allow on any."""
        rows = self.batch_size + (self.beside.each if self.beside else 0)
        return min(-(-rows // (self.micro * self.ranks)), rows // self.ranks)

    def __len__(self) -> int:
        return self.steps * self.micro_batches_per_step

    def largest(self, among: int = 2_000) -> int:
        """Tokens of the largest micro-batch of this rank, of so many, the first."""
        return max(int(self.lengths[piece].sum()) for piece in itertools.islice(self, among))

    def _epoch(self, epoch: int) -> np.ndarray:
        """Rows of each step, int [steps, batch_size]."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self._own)
        if len(order) < self.batch_size:  # fewer rows than a step takes: rows repeat inside it
            order = np.resize(order, self.batch_size)
        whole = len(order) // self.batch_size
        return order[: whole * self.batch_size].reshape(whole, self.batch_size)

    def _steps(self) -> Iterator[np.ndarray]:
        """Rows of each step of the training, int [batch_size], and those beside."""
        if self.beside is None:
            yield from self._own_steps()
            return
        for own, more in zip(self._own_steps(), self.beside.steps(self._own, self.seed), strict=False):
            yield np.concatenate([own, more])

    def _own_steps(self) -> Iterator[np.ndarray]:
        waiting: Iterator[np.ndarray] = iter(())
        epoch = 0
        for step in range(self.steps):
            drawn = next((item for item in self.draws if item.covers(step)), None)
            if drawn is not None:
                yield drawn.rows(step, self.batch_size, self.seed)
                continue
            rows = next(waiting, None)
            if rows is None:
                waiting, epoch = iter(self._epoch(epoch)), epoch + 1
                rows = next(waiting)
            yield rows

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            by_length = step[np.argsort(self.lengths[step], kind="stable")]
            # Neighbours, which are of like length, run side by side on the ranks.
            pieces = np.array_split(by_length, self.micro_batches_per_step * self.ranks)
            for piece in pieces[self.rank :: self.ranks]:
                yield piece.tolist()
