"""From lessons to batches: rows, the plan of which row is in which step, and the collator.

Shape legend: B rows, L positions, N selected (predicted) tokens of a batch, K kept ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from stillroom.losses.targets import SparseTargets


@dataclass(frozen=True)
class TrainingRow:
    """One lesson as tokens: `ids` int [L], `mask` bool [L] (True: this token is predicted), its signals or None."""

    ids: np.ndarray
    mask: np.ndarray
    targets: SparseTargets | None = None


class RowSource(Protocol):
    """Where rows come from: a lesson book or memory. `lengths` is int [rows]."""

    lengths: np.ndarray

    def __getitem__(self, index: int) -> TrainingRow:
        """The row at an index."""
        ...


class MemoryRows:
    """Rows without signals, four bytes a token, in two flat arrays."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> None:
        self.lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._ids = np.fromiter((i for ids, _ in rows for i in ids), dtype=np.int32, count=self._offsets[-1])
        self._mask = np.fromiter((m for _, mask in rows for m in mask), dtype=bool, count=self._offsets[-1])

    def __getitem__(self, index: int) -> TrainingRow:
        span = slice(self._offsets[index], self._offsets[index + 1])
        return TrainingRow(self._ids[span], self._mask[span])


class Rows(Dataset[TrainingRow]):
    """A torch view of a row source."""

    def __init__(self, source: RowSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.lengths)

    def __getitem__(self, index: int) -> TrainingRow:
        return self.source[index]


class StepPlan(Sampler[list[int]]):
    """Which rows are in which micro-batch, for the whole training, decided by the seed alone.

    Each epoch is shuffled, sorted by length inside pools of 64 steps (so that little is padded), cut into
    optimiser steps of `batch_size` rows and those into micro-batches. One iteration of this sampler is the
    whole training: a resumed run skips the micro-batches that were done and sees the same rest.

    Args:
        lengths: tokens of each row, int [rows].
        batch_size: rows of an optimiser step, over all micro-batches and ranks.
        micro_batch_size: rows of one forward pass.
        steps: optimiser steps of the whole training.
        seed: decides the order.
    """

    def __init__(
        self, lengths: np.ndarray, *, batch_size: int, micro_batch_size: int, steps: int, seed: int
    ) -> None:
        if len(lengths) == 0:
            raise ValueError("no rows to train on")
        self.lengths, self.steps, self.seed = lengths, steps, seed
        self.batch_size, self.micro = batch_size, min(micro_batch_size, batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one optimiser step."""
        return -(-self.batch_size // self.micro)

    def __len__(self) -> int:
        return self.steps * self.micro_batches_per_step

    def _epoch(self, epoch: int) -> Iterator[np.ndarray]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.lengths))
        if len(order) < self.batch_size:  # fewer rows than a step takes: rows repeat inside it
            order = np.resize(order, self.batch_size)
        pool = self.batch_size * 64
        for start in range(0, len(order), pool):
            chunk = order[start : start + pool]
            chunk = chunk[np.argsort(self.lengths[chunk], kind="stable")]
            whole = len(chunk) // self.batch_size
            left_over = len(chunk) - whole * self.batch_size
            # Which rows are dropped to fill whole steps changes each epoch.
            dropped = random.choice(len(chunk), left_over, replace=False)
            steps = np.delete(chunk, dropped).reshape(whole, self.batch_size)
            yield from steps[random.permutation(whole)]

    def __iter__(self) -> Iterator[list[int]]:
        done, epoch = 0, 0
        while done < self.steps:
            for step in self._epoch(epoch):
                if done == self.steps:
                    return
                for start in range(0, self.batch_size, self.micro):
                    yield step[start : start + self.micro].tolist()
                done += 1
            epoch += 1


def collate(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    """Right-pad rows into a batch.

    Returns:
        `input_ids` int64 [B, L]; `positions` int64 [N], indices into the flattened [B * L] hidden states whose
        output predicts a selected token; `labels` int64 [N], those tokens; and, where the rows have signals,
        `targets`, their SparseTargets over N. No attention mask is needed: padding is on the right and
        attention is causal, so no real token sees it.
    """
    longest = max(len(row.ids) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    positions, labels = [], []
    for number, row in enumerate(rows):
        ids = torch.from_numpy(np.asarray(row.ids, dtype=np.int64))
        input_ids[number, : len(ids)] = ids
        predicted = torch.from_numpy(np.flatnonzero(row.mask))
        positions.append(number * longest + predicted - 1)
        labels.append(ids[predicted])
    batch: dict[str, Any] = {
        "input_ids": input_ids,
        "positions": torch.cat(positions),
        "labels": torch.cat(labels),
    }
    targets = [row.targets for row in rows if row.targets is not None]
    if targets:
        batch["targets"] = SparseTargets.cat(targets)
    return batch
