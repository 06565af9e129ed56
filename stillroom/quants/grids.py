"""The search for scales: which grid of evenly spaced values lies closest to a group of weights.

A grid of so many codes is tried at a few widths around the one that just spans the group. For each the weights are
rounded to codes, and the scale (and the minimum) that serve those codes best follow by least squares; the best pair is
kept. ggml's own quantisers search likewise (`make_qx_quants`, `make_qkx2_quants` in ggml-quants.c) but weigh errors by
the size of the weight; here all errors count alike.

Shape legend: G groups, W weights of a group. All is float32 and elementwise but for sums over W, so that a group's result
depends on nothing but its own weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NOTHING = 1e-30
"""A step below this is 0: its inverse would not be a float32."""
_WIDTHS = torch.arange(-7, 8) * 0.12
"""How many codes more or fewer than there are the span of a group is divided by, one try each."""


def inverse(steps: Tensor) -> Tensor:
    """1 / steps, and 0 where the step is 0: there every weight becomes 0."""
    return torch.where(steps.abs() < _NOTHING, 0.0, 1 / steps)


def codes_of(weights: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
    """The nearest codes, float32 [G, W], of weights [G, W] on a grid with these steps [G, 1]."""
    return (weights * inverse(steps)).round_().clamp_(low, high)


def symmetric_steps(weights: Tensor, low: int, high: int) -> Tensor:
    """The step of a grid through 0 for each group.

    Args:
        weights: float32 [G, W].
        low: the lowest code, negative; the largest weight of a group takes it or one near it.
        high: the highest code.

    Returns:
        float32 [G, 1], negative where the largest weight is positive; 0 for a group of zeros.
    """
    largest = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
    per_code = inverse(largest)
    best_gain, best_step = torch.zeros_like(largest), torch.zeros_like(largest)
    for width in _WIDTHS.tolist():
        codes = (weights * (per_code * (low - width))).round_().clamp_(low, high)
        fit = (weights * codes).sum(-1, keepdim=True)
        size = codes.square().sum(-1, keepdim=True)
        step = fit * inverse(size)
        gain = fit * step  # by how much the squared error falls below that of all zeros
        better = gain > best_gain
        best_gain, best_step = torch.where(better, gain, best_gain), torch.where(better, step, best_step)
    return best_step


def affine_grids(weights: Tensor, high: int, *, reaches_zero: bool) -> tuple[Tensor, Tensor]:
    """The step and the minimum of a grid for each group: code 0 is the minimum.

    Args:
        weights: float32 [G, W].
        high: the highest code; the lowest is 0.
        reaches_zero: the minimum may not be above 0.

    Returns:
        steps float32 [G, 1], 0 or more, and minima float32 [G, 1].
    """
    lowest, highest = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
    if reaches_zero:
        lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
    count = weights.shape[-1]
    total = weights.sum(-1, keepdim=True)
    best_step, best_minimum = torch.zeros_like(lowest), lowest
    best_gain = torch.full_like(lowest, -torch.inf)
    per_code, above = inverse(highest - lowest), weights - lowest
    for width in _WIDTHS.tolist():
        codes = (above * (per_code * (high + width))).round_().clamp_(0, high)
        first, second = codes.sum(-1, keepdim=True), codes.square().sum(-1, keepdim=True)
        product = (codes * weights).sum(-1, keepdim=True)
        spread = inverse(count * second - first.square())
        step = (count * product - total * first) * spread
        minimum = (second * total - first * product) * spread
        if reaches_zero:
            raised = minimum > 0
            step, minimum = (
                torch.where(raised, product * inverse(second), step),
                torch.where(raised, 0.0, minimum),
            )
        # By how much the squared error falls below that of all zeros.
        gain = 2 * (step * product + minimum * total)
        gain -= step.square() * second + 2 * step * minimum * first + count * minimum.square()
        better = (gain > best_gain) & (step > 0)
        best_gain = torch.where(better, gain, best_gain)
        best_step = torch.where(better, step, best_step)
        best_minimum = torch.where(better, minimum, best_minimum)
    return best_step, best_minimum
