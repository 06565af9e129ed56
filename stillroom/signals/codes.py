"""Signals: sparse targets that are exactly what their codes on disk say.

A token keeps a *head*, its most probable tokens in falling order, and, for unbiased samples, *draws* from the
tail. One byte says the weight of a head token on a logarithmic scale; sixteen bits the tail's mass on a linear
one. The first head token needs no code, since all weights and the tail sum to one; nor do the draws, which
share the tail's mass equally. Codes are rounded up or down at random so that the mean of what is read is what
was meant: an estimate stays unbiased on disk. A first weight can so come out a little below zero where a long
head is flat; clamping it would be a bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.losses import SparseTargets
from stillroom.signals.bits import pack

SMALLEST = 1e-5  # the last level but one; what is below becomes it, or zero
TAIL_LEVELS = 65535
ENTROPY_STEPS = 4096  # a nat; sixteen bits reach 16 nats, the entropy of nine million equal tokens
COUNT_LIMIT = 255  # head and draws of a token are counted in a byte each
_LEVELS = 255  # 1 down to SMALLEST in equal ratios; code 255 is zero
_STEP = -math.log(SMALLEST) / (_LEVELS - 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Signals(SparseTargets):
    """Sparse targets and the codes that they were read from; built by `signals_of`.

    Args:
        codes: uint8 `[kept]`, weight codes of head tokens but the first; 0 elsewhere.
        heads: int64 `[tokens]`, how many of a token's entries are head; the rest are draws.
        tail_codes: int64 `[tokens]`, 0 to 65535, the mass outside the head.
        entropy_codes: int64 `[tokens]`, 0 to 65535, the entropy in nats / 4096.
    """

    codes: Tensor
    heads: Tensor
    tail_codes: Tensor
    entropy_codes: Tensor

    entry_fields: ClassVar[tuple[str, ...]] = (*SparseTargets.entry_fields, "codes")
    token_fields: ClassVar[tuple[str, ...]] = (
        *SparseTargets.token_fields,
        "heads",
        "tail_codes",
        "entropy_codes",
    )

    @property
    def coded(self) -> Tensor:
        """bool `[kept]`: the entries whose weight has a code of its own, that is the head but its first."""
        place = torch.arange(self.kept, device=self.ids.device) - self.offsets[:-1][self.positions]
        return (place > 0) & (place < self.heads[self.positions])

    @property
    def tailed(self) -> Tensor:
        """bool `[tokens]`: where the tail's mass is written; elsewhere it follows from the counts."""
        return (
            torch.ones_like(self.heads, dtype=torch.bool)
            if self.bucket
            else has_tail(self.heads, self.counts)
        )

    def bytes_per_token(self, vocab: int) -> float:
        """Mean bytes on disk, everything included: ids, weights, counts, tail mass, entropy."""
        bits = id_bits(vocab) * self.kept + 8 * int(self.coded.sum()) + 16 * int(self.tailed.sum())
        return (bits / 8 + self.tokens * fixed_bytes(self.bucket)) / max(self.tokens, 1)

    def chances(self, token_ids: Tensor) -> Tensor:
        """The estimate of one token's probability at each position: int64 `[tokens]` to float32 `[tokens]`."""
        hit = self.ids == token_ids[self.positions]
        found = self.weights.new_zeros(self.tokens)
        return found.index_add_(0, self.positions[hit], self.weights[hit])

    def columns(self, bits: int) -> list[NDArray[Any]]:
        """What a row holds of them, in this order; `stillroom.signals.codec` names the columns."""
        own = self.to("cpu")
        draws = own.counts - own.heads
        return [
            own.heads.numpy().astype(np.uint8),
            *([] if own.bucket else [draws.numpy().astype(np.uint8)]),
            own.entropy_codes.numpy().astype("<u2"),
            own.tail_codes[own.tailed].numpy().astype("<u2"),
            own.codes[own.coded].numpy(),
            pack(own.ids.numpy(), bits),
        ]


def signals_of(
    *,
    ids: Tensor,
    heads: Tensor,
    counts: Tensor,
    codes: Tensor,
    tail_codes: Tensor,
    entropy_codes: Tensor,
    bucket: bool,
    temperature: float,
) -> Signals:
    """Codes become weights, as `signals_read` has them from disk. Fields as in `Signals`."""
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = torch.repeat_interleave(torch.arange(len(counts), device=ids.device), counts)
    place = torch.arange(ids.shape[0], device=ids.device) - offsets[:-1][rows]
    in_head = place < heads[rows]
    weights = level(codes.long()) * (in_head & (place > 0))
    tail = tail_codes.double() / TAIL_LEVELS
    if not bucket:
        tail = torch.where(heads == 0, 1.0, tail * has_tail(heads, counts))
    others = torch.zeros_like(tail).index_add_(0, rows, weights)
    weights = torch.where(in_head & (place == 0), (1 - tail - others)[rows], weights)
    share = tail / (counts - heads).clamp(min=1)
    weights = torch.where(in_head, weights, share[rows])
    return Signals(
        ids=ids,
        weights=weights.float(),
        offsets=offsets,
        tail_mass=(tail if bucket else torch.zeros_like(tail)).float(),
        entropy=(entropy_codes.double() / ENTROPY_STEPS).float(),
        bucket=bucket,
        temperature=temperature,
        codes=codes,
        heads=heads,
        tail_codes=tail_codes,
        entropy_codes=entropy_codes,
    )


def signals_read(
    *,
    ids: NDArray[np.int64],
    heads: NDArray[np.int64],
    draws: NDArray[np.int64],
    codes: NDArray[np.uint8],
    tail_codes: NDArray[np.int64],
    entropy_codes: NDArray[np.int64],
    bucket: bool,
    temperature: float,
    vocab: int | None = None,
) -> Signals:
    """What `signals_of` makes, to the bit, of columns as they are on disk; in numpy, which does small steps quicker.

    Args:
        draws: how many of a token's entries are draws.
        codes: without zeros for the entries that have no code.
        ids, heads, tail_codes, entropy_codes, bucket, temperature, vocab: as in `Signals`.
    """
    counts = heads + draws
    offsets = np.zeros(len(counts) + 1, np.int64)
    counts.cumsum(out=offsets[1:])
    tail = tail_codes / TAIL_LEVELS
    if not bucket:
        tail[draws == 0] = 0.0
        tail[heads == 0] = 1.0
    coded = np.maximum(heads - 1, 0)
    levels = _LEVEL_TABLE[codes]
    others = np.bincount(np.arange(len(heads)).repeat(coded), levels, len(heads))
    # Every entry is first taken for a draw, then those of the head are set.
    weights = (tail / np.maximum(draws, 1)).repeat(counts)
    where = _ranges(offsets[:-1] + 1, coded)
    weights[where] = levels
    headed = heads > 0
    weights[offsets[:-1][headed]] = (1 - tail - others)[headed]
    spread = np.zeros(len(ids), np.uint8)
    spread[where] = codes
    return Signals(
        ids=torch.from_numpy(ids),
        weights=torch.from_numpy(weights.astype(np.float32)),
        offsets=torch.from_numpy(offsets),
        tail_mass=torch.from_numpy(tail.astype(np.float32) if bucket else np.zeros(len(tail), np.float32)),
        entropy=torch.from_numpy((entropy_codes / ENTROPY_STEPS).astype(np.float32)),
        bucket=bucket,
        temperature=temperature,
        vocab=vocab,
        codes=torch.from_numpy(spread),
        heads=torch.from_numpy(heads),
        tail_codes=torch.from_numpy(tail_codes),
        entropy_codes=torch.from_numpy(entropy_codes),
    )


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, ... for each start, as many as its length."""
    ends = lengths.cumsum()
    return np.arange(int(lengths.sum())) + (starts - ends + lengths).repeat(lengths)


def has_tail(heads: Tensor, counts: Tensor) -> Tensor:
    """Where unbiased samples need a tail mass written: with both head and draws."""
    return (heads > 0) & (counts > heads)


def level(codes: Tensor) -> Tensor:
    """float64 weights of codes 0 to 255."""
    return torch.where(codes < _LEVELS, torch.exp(-_STEP * codes.double()), 0.0)


_LEVEL_TABLE = level(torch.arange(_LEVELS + 1)).numpy()


def round_weights(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Codes of weights in [0, 1] (float64), rounded up or down at random so that the mean level is the weight."""
    lower = (-weights.clamp(min=1e-300).log() / _STEP).floor().clamp(0, _LEVELS - 1).long()
    above, below = level(lower), level(lower + 1)
    up = uniforms < (weights - below) / (above - below)
    return torch.where(up, lower, lower + 1).to(torch.uint8)


def round_tail(mass: Tensor, uniforms: Tensor) -> Tensor:
    """Codes of tail masses in [0, 1] (float64), likewise rounded at random."""
    return (mass * TAIL_LEVELS + uniforms).floor().clamp(0, TAIL_LEVELS).long()


def round_entropy(entropy: Tensor) -> Tensor:
    """Codes of entropies in nats, to the nearest: an offset of the reported value, no part of any gradient."""
    return (entropy.double() * ENTROPY_STEPS).round().clamp(0, 65535).long()


def id_bits(vocab: int) -> int:
    """Bits of a token id."""
    return max(1, (vocab - 1).bit_length())


def fixed_bytes(bucket: bool) -> int:
    """Bytes that every token has: the count of its head, of its draws (unbiased samples only), its entropy."""
    return 3 if bucket else 4
