"""From rows to a batch: laid end to end, or padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.losses import SparseTargets
from stillroom.signals.hidden import HiddenSignals
from stillroom.training.batches import Targets, TrainingRow
from stillroom.training.packing import Layout


def collate(rows: Sequence[TrainingRow], *, packed: bool = False) -> dict[str, Any]:
    """Make a batch of rows; of N selected tokens in all.

    Args:
        rows: at least one.
        packed: lay them end to end, without padding, for a model that honours it. Else they are padded on the
            right: attention is causal, so no real token sees the padding and no mask is needed.

    Returns:
        `input_ids` int64 [B, L], or [1, T] packed; `positions` int64 [N], indices into the flattened hidden states
        whose output predicts a selected token; `labels` int64 [N], those tokens; `targets`, what they know of
        the teacher, where the rows have signals; and, packed, `position_ids` int64 [1, T] and `layout`.

    Raises:
        ValueError: a row's first token is selected, which nothing in its row predicts; or signals of several kinds.
    """
    if any(bool(row.mask[:1].any()) for row in rows):
        raise ValueError("the first token of a row cannot be predicted: nothing comes before it")
    ids = [torch.from_numpy(np.asarray(row.ids, dtype=np.int64)) for row in rows]
    lengths = [len(row) for row in ids]
    longest = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(rows)) * longest
    chosen = [torch.from_numpy(np.flatnonzero(row.mask)) for row in rows]
    batch: dict[str, Any] = {
        "input_ids": torch.cat(ids)[None] if packed else _padded(ids, longest),
        "positions": torch.cat([at + int(start) - 1 for at, start in zip(chosen, starts, strict=True)]),
        "labels": torch.cat([row[at] for row, at in zip(ids, chosen, strict=True)]),
    }
    if packed:
        batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
        batch["layout"] = Layout.of(lengths)
    targets = [row.targets for row in rows if row.targets is not None]
    if targets:
        batch["targets"] = _joined(targets)
    return batch


def _joined(targets: Sequence[Targets]) -> Targets:
    hidden = [part for part in targets if isinstance(part, HiddenSignals)]
    if not hidden:
        return SparseTargets.cat([part for part in targets if isinstance(part, SparseTargets)])
    if len(hidden) < len(targets):
        raise ValueError(
            "hidden states and sparse targets cannot be joined in a batch: train from one kind of book"
        )
    return HiddenSignals.cat(hidden)


def _padded(ids: Sequence[Tensor], longest: int) -> Tensor:
    """The padding token does not matter: 0 is in every vocabulary."""
    out = torch.zeros(len(ids), longest, dtype=torch.int64)
    for number, row in enumerate(ids):
        out[number, : len(row)] = row
    return out
