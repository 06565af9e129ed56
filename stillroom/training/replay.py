"""General text beside the lessons: rows that bring no signals of the teacher, made fit for a batch of rows that do."""

from __future__ import annotations

import numpy as np
import torch

from stillroom.losses import SparseTargets
from stillroom.training.batches import RowSource, Targets, TrainingRow


class Replayed:
    """Rows of which each token counts for certain, where the lessons beside them bring what a teacher thought.

    Args:
        rows: without signals.
        like: the signals of a lesson; None where lessons bring none either.

    Raises:
        ValueError: the signals are hidden states, which no text alone has.
    """

    def __init__(self, rows: RowSource, like: Targets | None) -> None:
        if like is not None and not isinstance(like, SparseTargets):
            raise ValueError("replayed text has no hidden states of the teacher to be learned from")
        self.rows, self.lengths, self._like = rows, rows.lengths, like

    def __getitem__(self, index: int) -> TrainingRow:
        row = self.rows[index]
        if self._like is None:
            return row
        labels = torch.from_numpy(np.asarray(row.ids[row.mask], dtype=np.int64))
        return TrainingRow(row.ids, row.mask, SparseTargets.certain(labels, self._like))
