"""The one place where token values become a loss."""

from __future__ import annotations

import torch
from torch import Tensor


def token_weights(mask: Tensor, denominator: float | Tensor) -> Tensor:
    """What each token's value is multiplied by before summing: mask / denominator, in fp32.

    Args:
        mask: bool (or 0/1) of any shape; True where the token is predicted and counts.
        denominator: the number of selected tokens in the whole optimiser step, across micro-batches, packed
            rows and ranks; not the count in this mask. Zero gives zero weights: a step without tokens has no
            loss.

    Raises:
        ValueError: the denominator is negative.
    """
    whole = torch.as_tensor(denominator, dtype=torch.float32, device=mask.device)
    if whole < 0:
        raise ValueError(f"the denominator counts tokens and cannot be negative, got {denominator}")
    return torch.where(whole > 0, mask.to(torch.float32) / whole.clamp(min=1e-30), 0.0)


def reduce(values: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """The sum of the selected values over the denominator: a scalar, in at least fp32.

    What stands at unselected places, NaN included, reaches neither the loss nor the gradient.

    Args:
        values: one value a token, any shape.
        mask: the same shape; True where the token counts.
        denominator: selected tokens in the whole optimiser step, see `token_weights`.

    Raises:
        ValueError: the shapes differ, or the denominator is negative.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must have one shape")
    weights = token_weights(mask, denominator)
    return (
        values.to(torch.promote_types(values.dtype, torch.float32)).masked_fill(weights == 0, 0) * weights
    ).sum()
