"""Forward KL against a teacher known by a few weighted tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillroom.losses.divergences import check_temperature, widened
from stillroom.losses.targets import SparseTargets


def sparse_forward_kl(student_logits: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL(p || q) times T squared, one value a token, in at least fp32.

    With unbiased samples, value and gradient are those of the dense forward KL on average over the draws.
    With a bucket it is the KL between the distributions over kept tokens and "any other", which is never
    more than the dense one.

    Args:
        student_logits: `[tokens, vocab]`.
        targets: captured at the same temperature.
        temperature: T > 0.

    Raises:
        ValueError: shapes, ids or temperature do not fit.
    """
    check_targets(targets, student_logits.shape, temperature)
    return _SparseForwardKL.apply(student_logits, targets, temperature)


def check_targets(targets: SparseTargets, shape: tuple[int, ...] | torch.Size, temperature: float) -> None:
    """Raise ValueError unless the targets fit logits of this shape, taken at this temperature."""
    check_temperature(temperature)
    if len(shape) != 2 or shape[0] != targets.tokens:
        raise ValueError(
            f"student logits must be [{targets.tokens}, vocab] for these targets, got {tuple(shape)}"
        )
    if targets.temperature != temperature:
        raise ValueError(
            f"these targets were captured at temperature {targets.temperature}, the loss asks for {temperature}"
        )
    targets.check_vocab(shape[1])


def value_and_gradient(
    logits: Tensor, targets: SparseTargets, temperature: float, *, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Values `[tokens]` and their gradient `[tokens, vocab]` by the logits, both with T squared.

    With x = logits / T and W the sum of a token's weights, the cross-entropy W logsumexp(x) - sum w x_k has
    the gradient W softmax(x) - w; it is exact when W is not one. A bucket adds
    tail * (logsumexp(x) - logsumexp(x over the tokens that are not kept)).
    """
    x = logits / temperature
    rows, ids = targets.positions, targets.ids
    weights, tail = targets.weights.to(x.dtype), targets.tail_mass.to(x.dtype)
    whole = torch.logsumexp(x, -1)
    surprise = (whole[rows] - x[rows, ids]).masked_fill(weights == 0, 0)
    values = torch.zeros_like(whole).index_add_(0, rows, weights * surprise)
    mass = torch.zeros_like(whole).index_add_(0, rows, weights)
    if targets.bucket:
        rest = x.index_put((rows, ids), x.new_tensor(-math.inf))
        outside = torch.logsumexp(rest, -1)
        values = values + (tail * (whole - outside)).masked_fill(tail == 0, 0)
        mass = mass + tail
    values = temperature**2 * (values - targets.entropy.to(x.dtype))
    if not gradient:
        return values, None
    slope = x.sub_(whole[:, None]).exp_().mul_(mass[:, None])
    slope.index_put_((rows, ids), -weights, accumulate=True)
    if targets.bucket:
        within = rest.sub_(outside[:, None]).exp_().mul_(tail[:, None])
        slope.sub_(within.masked_fill_((tail == 0)[:, None], 0))
    return values, slope.mul_(temperature)


class _SparseForwardKL(torch.autograd.Function):
    """`value_and_gradient` as an autograd operation; the gradient is taken in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
        values, slope = value_and_gradient(
            widened(logits), targets, temperature, gradient=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(slope)
        ctx.dtype = logits.dtype
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(ctx.dtype), None, None
