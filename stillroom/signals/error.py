"""How far a sampled target is from the teacher's distribution, and what another budget would give.

A target w of p has the squared error E |w - p|^2, and since the gradient by the student's logits is q - w, that is
the variance of the gradient, whatever the student. Its natural scale is that of the cheapest unbiased target,
one token drawn from the teacher (plain training on its text): E |onehot - p|^2 = 1 - |p|^2. The *noise* of signals
is the root of the ratio, summed over tokens: 0.1 means a tenth of a drawn label's error, or as little as the mean of
a hundred labels drawn at each token. Errors of different tokens are independent, so over a batch of n tokens the
error of the mean gradient falls with the root of n; a bias, such as a bucket's, does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.divergences import check_temperature
from stillroom.signals.capture import capture
from stillroom.signals.codes import Signals, level
from stillroom.signals.counter import mix


@dataclass(frozen=True)
class Outlook:
    """What a budget of bytes a token gives on a sample.

    Args:
        budget: bytes a token allowed.
        bytes_per_token: bytes a token used, mean.
        noise: error of the targets relative to one drawn label, from 0.
    """

    budget: int
    bytes_per_token: float
    noise: float

    @property
    def labels(self) -> float:
        """Labels drawn at each token whose mean would be as exact."""
        return 1 / self.noise**2 if self.noise else math.inf


def outlook(
    logits: Tensor, *, temperature: float = 1.0, budgets: Iterable[int] = (24, 36, 64, 128)
) -> list[Outlook]:
    """The bytes and the noise of head+draws at each budget, on a sample of the teacher's logits.

    Args:
        logits: `[tokens, vocab]`, any floating dtype; some thousand tokens of the real task say enough.
        temperature: T > 0 of the capture.
        budgets: bytes a token.

    Raises:
        ValueError, BookError: as in `capture`.
    """
    check_temperature(temperature)
    keys = mix(torch.arange(len(logits), device=logits.device))
    found = []
    for budget in budgets:
        error, label, size = 0.0, 0.0, 0.0
        for rows, seeds in zip(logits.split(256), keys.split(256), strict=True):
            signals = capture(rows, keys=seeds, temperature=temperature, budget=budget)
            p = (rows.double() / temperature).softmax(-1)
            error += float(squared_error(signals, p).sum())
            label += float((1 - p.square().sum(-1)).sum())
            size += signals.bytes_per_token(logits.shape[1]) * signals.tokens
        found.append(Outlook(budget, size / max(len(logits), 1), math.sqrt(error / label) if label else 0.0))
    return found


def choose(
    logits: Tensor,
    *,
    noise: float,
    temperature: float = 1.0,
    budgets: Iterable[int] = (16, 24, 36, 48, 64, 96, 128),
) -> Outlook:
    """The smallest of the budgets whose noise on the sample is at most this; the largest if none is.

    Args and errors as in `outlook`.
    """
    found = outlook(logits, temperature=temperature, budgets=sorted(budgets))
    return next((item for item in found if item.noise <= noise), found[-1])


def squared_error(signals: Signals, p: Tensor) -> Tensor:
    """E |w - p|^2 over the random numbers of the capture, float64 `[tokens]`.

    Args:
        signals: unbiased ones; only where their heads and draws lie is looked at, which no random number decides.
        p: float64 `[tokens, vocab]`, the distribution that they were captured from.

    Raises:
        ValueError: signals with a bucket, whose error depends on the student.
    """
    rows, head = _head(signals)
    at = (rows, signals.ids)
    tail = p.index_put((rows[head], signals.ids[head]), p.new_zeros(()))
    draws = (signals.counts - signals.heads).double()
    step = torch.where(draws > 0, tail.sum(-1) / draws.clamp(min=1), 0.0)
    # A token comes p / step times, rounded up or down at random: the variance of that rounding.
    part = (tail / step.clamp(min=1e-300)[:, None]) % 1
    error = step**2 * (part * (1 - part)).sum(-1) * (draws > 0)
    # The rounding of a weight to its code is taken up again by the first token, which has what the others leave.
    kept = p[at]
    code = level_error(kept) * signals.coded
    return error + 2 * torch.zeros_like(error).index_add_(0, rows, code)


def noise(signals: Signals) -> float:
    """The noise of captured signals, from their codes alone: an upper bound, close where heads are short.

    With mass t in a tail of n draws the error is t^2 / n less what the tail's own squares sum to, which only the
    teacher knows. Rounding of codes is left out.

    Raises:
        ValueError: signals with a bucket, whose error depends on the student.
    """
    rows, head = _head(signals)
    draws = (signals.counts - signals.heads).double()
    tail = torch.zeros_like(draws).index_add_(0, rows, signals.weights.double() * ~head)
    error = tail**2 / draws.clamp(min=1)
    squares = torch.zeros_like(draws).index_add_(0, rows, signals.weights.double() ** 2 * head)
    label = (1 - squares - error).clamp(min=0).sum()
    return math.sqrt(float(error.sum() / label)) if label > 0 else 0.0


def _head(signals: Signals) -> tuple[Tensor, Tensor]:
    """Each entry's position, and whether it is of the head."""
    if signals.bucket:
        raise ValueError("the error of a bucket depends on the student; only head+draws has one of its own")
    rows = signals.positions
    place = torch.arange(signals.kept, device=rows.device) - signals.offsets[:-1][rows]
    return rows, place < signals.heads[rows]


def level_error(weights: Tensor) -> Tensor:
    """Variance of the rounding of float64 weights to their codes."""
    codes = torch.arange(256, device=weights.device)
    levels = level(codes).flip(0).contiguous()
    above = torch.searchsorted(levels, weights.contiguous()).clamp(1, 255)
    return (levels[above] - weights).clamp(min=0) * (weights - levels[above - 1]).clamp(min=0)
