"""Drawing tokens so that an answer depends on its request alone.

Each draw's randomness is a function of the request's key, the step and the token id (Gumbel-max with counter-based
random numbers), not of a generator's state: batches, order, refills and a resumed run change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.contracts.records import Sampling
from stillroom.signals.counter import mix

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's odd step between counters, as a signed number."""


def draw(logits: Tensor, seeds: Tensor, steps: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row.

    Args:
        logits: float32 [rows, vocab], as the model gave them.
        seeds: int64 [rows], from `Request.seed`.
        steps: int64 [rows], how many tokens each row has already.
        sampling: temperature (0 is greedy) and top_p.

    Returns:
        The tokens, int64 [rows], and their log-probabilities at temperature 1, float32 [rows].
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        scaled = logits / sampling.temperature
        if sampling.top_p < 1:
            scaled = nucleus(scaled, sampling.top_p)
        tokens = (scaled + gumbel(seeds, steps, logits.shape[-1])).argmax(-1)
    chosen = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens, chosen


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until their mass reaches top_p (Holtzman et al. 2020); the rest get -inf."""
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return logits.masked_fill(torch.empty_like(outside).scatter(-1, order, outside), -torch.inf)


def gumbel(seeds: Tensor, steps: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise, float32 [rows, vocab], a function of seed, step and token id only."""
    rows = mix(seeds + mix(steps + 1))
    bits = mix(rows[:, None] + torch.arange(vocab, device=seeds.device) * _GOLDEN)
    # Two halves of 24 bits keep small numbers precise in float32, all that some accelerators have.
    uniform = ((bits >> 40) & 0xFFFFFF) * 2.0**-24 + ((bits & 0xFFFFFF) + 0.5) * 2.0**-48
    return -torch.log(-torch.log1p(-uniform))
