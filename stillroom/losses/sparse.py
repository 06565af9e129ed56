"""Losses against a teacher known by a few weighted tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillroom.losses.divergences import widened
from stillroom.losses.fits import check_fit, check_ids
from stillroom.losses.logspace import exact, no_distribution
from stillroom.losses.targets import SparseTargets


def sparse_forward_kl(student_logits: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL(p || q) times T squared, one value a token, in at least fp32.

    With unbiased samples, value and gradient are those of the dense forward KL on average over the draws.
    With a bucket it is the KL between the distributions over kept tokens and "any other", which is never
    more than the dense one. The columns that only pad the student's head are no part of "any other" where the
    targets tell the teacher's vocabulary: they are forbidden, as in the dense loss.

    Args:
        student_logits: `[tokens, vocab]`; a row that is no distribution has the value infinity and no gradient.
        targets: captured at the same temperature.
        temperature: T > 0.

    Raises:
        ValueError: shapes, ids or temperature do not fit, weights are not finite, or the targets are a
            renormalised top-k.
    """
    check_kind(targets, "forward_kl")
    check_fit(targets, student_logits.shape, temperature, "captured")
    check_entries(targets, student_logits.shape[1])
    return differentiable(student_logits, value_and_gradient, targets, temperature)


def renormalised_kl(student_logits: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL(p' || q') times T squared over the kept tokens alone, p' and q' both renormalised over them.

    For teachers that give neither the tail nor its mass. It is biased: it says nothing of how much mass belongs
    outside the kept tokens, and neither pulls the rest of the vocabulary down nor up; add hard labels, which do.
    The usual form compares p' with the whole of q. That is worse: its minimum is a student without a tail, and
    its value is not zero for a student that equals the teacher. With both sides renormalised it is a part of
    the true KL by the chain rule, so the teacher stays a minimum, of value zero.

    Args:
        student_logits: `[tokens, vocab]`, as in `sparse_forward_kl`.
        targets: from `SparseTargets.renormalised_top_k`, at the same temperature.
        temperature: T > 0.

    Raises:
        ValueError: shapes, ids or temperature do not fit, weights are not finite, or the targets are of another
            kind.
    """
    check_kind(targets, "renormalised_kl")
    check_fit(targets, student_logits.shape, temperature, "captured")
    check_entries(targets, student_logits.shape[1])
    return differentiable(student_logits, value_and_gradient, targets, temperature)


def check_kind(targets: SparseTargets, divergence: object) -> None:
    """Raise ValueError unless this divergence, by name, is what such targets can estimate."""
    if targets.renormalised and divergence != "renormalised_kl":
        raise ValueError(
            "a renormalised top-k says nothing of the tokens that it left out, so that any loss but "
            f"renormalised_kl would be biased; got {divergence!r}"
        )
    if not targets.renormalised and divergence == "renormalised_kl":
        raise ValueError(f"renormalised_kl wants a renormalised top-k, got targets of kind {targets.kind}")
    if not targets.renormalised and divergence != "forward_kl":
        raise ValueError(
            f"sparse targets serve forward_kl only, since only that is linear in p; got {divergence!r}"
        )


def check_entries(targets: SparseTargets, columns: int) -> None:
    """Raise ValueError unless all ids are columns that both sides have, and all numbers are finite."""
    check_ids(targets.ids, columns if targets.vocab is None else min(columns, targets.vocab))
    numbers = torch.cat([targets.weights, targets.tail_mass, targets.entropy])
    if not bool(numbers.isfinite().all()):
        raise ValueError("the teacher's weights, tail mass or entropy of a position hold NaN or infinity")


def value_and_gradient(
    logits: Tensor, targets: SparseTargets, temperature: float, *, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Values `[tokens]` and their gradient `[tokens, vocab]` by the logits, both with T squared.

    With x = logits / T and W the sum of a token's weights, the cross-entropy W logsumexp(x) - sum w x_k has
    the gradient W softmax(x) - w; it is exact when W is not one. A bucket adds
    tail * (logsumexp(x) - logsumexp(x over the tokens that are not kept, padding apart)). For a renormalised
    top-k all other tokens are out of x.
    """
    x = logits if temperature == 1.0 else logits / temperature
    rows, ids = targets.positions, targets.ids
    weights, tail = targets.weights.to(x.dtype), targets.tail_mass.to(x.dtype)[:, None]
    kept = x[rows, ids]
    rest = x.index_put((rows, ids), x.new_tensor(-math.inf)) if targets.bucket else None
    if rest is not None and targets.vocab is not None:
        rest[:, targets.vocab :] = -math.inf
    if targets.renormalised:
        x = torch.full_like(x, -math.inf).index_put_((rows, ids), kept)
    q, whole = _softmax(x) if rest is None and not targets.renormalised else _shares(x)
    surprise = (whole.squeeze(1)[rows] - kept).masked_fill(weights == 0, 0)
    # One entry after the other, in float64: with a whole vocabulary kept, fp32 was off in the fourth digit.
    nothing = exact(x.new_zeros(x.shape[0]))
    values = nothing.index_add(0, rows, exact(weights * surprise))
    mass = nothing.index_add(0, rows, exact(weights)).to(x.dtype)[:, None]
    if rest is not None:
        outer, outside = _shares(rest)
        sums_outside = outer.sum(-1, keepdim=True)  # 1, or 0 where nothing is outside
        tail = tail.masked_fill(sums_outside == 0, 0)  # all tokens kept: what the tail still says is rounding
        values = values + (tail * (whole - outside)).masked_fill(tail == 0, 0).squeeze(1)
        mass = mass + tail
    values = (temperature**2 * (values - targets.entropy)).to(x.dtype)
    if not gradient:
        return values, None
    slope = q.mul_(temperature * mass)
    slope.index_put_((rows, ids), -temperature * weights, accumulate=True)
    if rest is not None:
        slope.sub_(outer.mul_(temperature * tail))
    return values, slope


def _softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(x) and logsumexp(x), the latter `[tokens, 1]`; NaN in a row that is no distribution."""
    top = x.amax(-1, keepdim=True)
    q = (x - top).exp_()
    sums = q.sum(-1, keepdim=True)
    return q.div_(sums), top + sums.log()


def _shares(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `_softmax` where all of a row may be minus infinity: its shares, and what stands for its logsumexp, are 0 then."""
    top = x.amax(-1, keepdim=True)
    top.masked_fill_(top == -math.inf, 0)
    shares = (x - top).exp_()
    sums = shares.sum(-1, keepdim=True).clamp_(min=1)  # any other row's sum is at least 1
    return shares.div_(sums), top + sums.log()


def differentiable(logits: Tensor, function: Callable[..., Any], *arguments: Any) -> Tensor:
    """Values of a function like `value_and_gradient`, with its gradient, taken going forward, for autograd.

    A row of logits that is no distribution has the value infinity and the gradient zero.
    """
    return _GradientInForward.apply(logits, function, arguments)


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
        values, slope = function(widened(logits), *arguments, gradient=ctx.needs_input_grad[0])
        broken = no_distribution(logits).squeeze(1)
        if slope is not None:
            slope.masked_fill_(broken[:, None], 0)
        ctx.save_for_backward(slope)
        ctx.dtype = logits.dtype
        return values.masked_fill(broken, math.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(ctx.dtype), None, None
