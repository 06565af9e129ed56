"""Sums over log-probabilities in which minus infinity, an event without mass, is welcome, and how exact they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q) over the last dimension; an event without mass in p adds nothing, whatever q says."""
    p = log_p.exp()
    nothing = p == 0  # also where a finite logarithm is too small for its exponential
    # Both factors are filled, not the product: 0 * inf is NaN in the value, and again in the gradient.
    return (p * (log_p.masked_fill(nothing, 0) - log_q.masked_fill(nothing, 0))).sum(-1)


def no_distribution(logits: Tensor) -> Tensor:
    """bool `[..., 1]`: which rows of logits `[..., vocab]` have no softmax.

    They hold NaN or plus infinity, or nothing but minus infinity.
    """
    return ~logits.detach().amax(-1, keepdim=True).isfinite()


def blanked(logits: Tensor, rows: Tensor) -> Tensor:
    """The logits, in place made 0 in these rows, bool `[..., 1]`.

    Before a softmax: past it, a gradient of zero would come back as 0 * NaN.
    """
    # A CPU is asked for free, and writes slowly under a mask; a GPU would have to wait for the answer.
    return logits.masked_fill_(rows, 0) if not rows.is_cpu or rows.any() else logits


def exact(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 on Apple's GPUs, which have nothing wider."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def log_sum(logs: Tensor) -> Tensor:
    """logsumexp over the last dimension; a row without any mass gives minus infinity and a gradient of zero."""
    empty = (logs == -math.inf).all(-1)  # torch.logsumexp would give such a row a gradient of NaN
    return logs.masked_fill(empty.unsqueeze(-1), 0).logsumexp(-1).masked_fill(empty, -math.inf)
