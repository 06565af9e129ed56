"""Whether a model keeps packed rows apart: it is asked, and its answers to packed and to single rows compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate
from stillroom.training.objective import decoder_of, hidden_states
from stillroom.training.packing import prepare_packing, undo_packing

_SHORT = (5, 7)


def use_packing(model: Any, longest: int, *, attached: bool) -> bool:
    """Give the model attention within rows if its answers prove that it honours it; else leave it as it was.

    State-space and convolution layers, windows that only a mask makes known, positions that are counted anew: there
    is no list of architectures to fall behind. A row as long as the longest of training goes in between two short
    ones, and each token's hidden state must be what its row alone gives.

    Args:
        model: the causal language model, in any wrapper through which its forward is reached.
        longest: tokens of the longest row to be packed.
        attached: whether an Objective is attached to it; needed where it is wrapped.
    """
    decoder = decoder_of(model)
    if not prepare_packing(decoder):
        return False
    was_training = model.training
    model.eval()
    try:
        kept_apart = _kept_apart(model, max(longest, 2), attached)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError):
        kept_apart = False  # the model's forward does not take packed rows
    finally:
        model.train(was_training)
    if not kept_apart:
        undo_packing(decoder)
    return kept_apart


@torch.no_grad()
def _kept_apart(model: Any, longest: int, attached: bool) -> bool:
    weight = next(model.parameters())
    vocabulary = model.config.vocab_size
    random = np.random.default_rng(0)
    rows = []
    for length in (_SHORT[0], longest, _SHORT[1]):
        mask = np.arange(length) > 0
        rows.append(TrainingRow(random.integers(0, vocabulary, length), mask))

    def states(batch: dict[str, Any]) -> Tensor:
        batch = {name: value.to(weight.device) for name, value in batch.items()}
        if attached:
            return model(**batch, states=True).float()
        return hidden_states(model, **batch).float()

    apart = torch.cat([states(collate([row])) for row in rows])
    packed = states(collate(rows, packed=True))
    # Sums in another order differ by rounding, a token seen across rows by far more.
    tolerance = 1e-3 if weight.dtype == torch.float32 else 5e-2
    return bool((packed - apart).abs().max() <= tolerance * apart.abs().max())
