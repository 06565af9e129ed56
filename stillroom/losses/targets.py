"""What a teacher hands over: a few weighted tokens of its distribution, or the means to compute all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """A teacher's last hidden states and its output head: its logits are computed chunk by chunk.

    Args:
        hidden: `[tokens, teacher hidden]`.
        weight: `[teacher vocab, teacher hidden]`.
        bias: `[teacher vocab]` or None.
        logit_scale: what the head's output is multiplied by (Cohere, Granite).
        softcap: cap c of `c * tanh(logits / c)` after scaling (Gemma), or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class SparseTargets:
    """A teacher's distributions over `tokens` positions, each known by a few tokens only; ragged.

    Position i keeps the entries `offsets[i]:offsets[i + 1]`. Two kinds: unbiased samples, whose weights are
    estimates of p and sum to one, so that every loss linear in p is right on average (Anshumann et al. 2025);
    and top-k with a bucket, where `tail_mass` is the mass of all other tokens together. Both serve
    forward KL and cross-entropy only.

    Args:
        ids: int64 `[kept]`, token ids.
        weights: float32 `[kept]`, the estimate of p at these ids.
        offsets: int64 `[tokens + 1]`, from 0 to kept.
        tail_mass: float32 `[tokens]`, mass that no entry represents; zero for unbiased samples.
        entropy: float32 `[tokens]`, nats: the teacher's entropy at `temperature`, for a bucket that of the
            distribution over kept tokens and bucket. It makes the reported value a true KL.
        bucket: whether `tail_mass` is a bucket that the loss must match.
        temperature: at which the teacher's distribution was taken; the loss must use the same.

    Raises:
        ValueError: lengths that do not fit.
    """

    ids: Tensor
    weights: Tensor
    offsets: Tensor
    tail_mass: Tensor
    entropy: Tensor
    bucket: bool = False
    temperature: float = 1.0

    # Which fields have one value an entry and one a token: a subclass adds its own, and `select`, `split`,
    # `cat` and `to` carry them along.
    entry_fields: ClassVar[tuple[str, ...]] = ("ids", "weights")
    token_fields: ClassVar[tuple[str, ...]] = ("tail_mass", "entropy")

    def __post_init__(self) -> None:
        for names, length in ((self.entry_fields, self.kept), (self.token_fields, self.tokens)):
            for name in names:
                if getattr(self, name).shape != (length,):
                    raise ValueError(
                        f"{name} must have shape ({length},), got {tuple(getattr(self, name).shape)}"
                    )

    @property
    def tokens(self) -> int:
        """How many positions."""
        return self.offsets.shape[0] - 1

    @property
    def kept(self) -> int:
        """How many entries, over all positions."""
        return self.ids.shape[0]

    @property
    def counts(self) -> Tensor:
        """Entries of each position, int64 `[tokens]`."""
        return self.offsets.diff()

    @property
    def positions(self) -> Tensor:
        """The position of each entry, int64 `[kept]`."""
        index = torch.arange(self.tokens, device=self.ids.device)
        return torch.repeat_interleave(index, self.counts, output_size=self.kept)

    def to_dense(self, vocab: int) -> Tensor:
        """The weights as float32 `[tokens, vocab]`; the mass of a bucket is left out.

        Raises:
            ValueError: an id does not fit the vocabulary.
        """
        self.check_vocab(vocab)
        dense = torch.zeros(self.tokens, vocab, device=self.ids.device)
        return dense.index_put_((self.positions, self.ids), self.weights, accumulate=True)

    def check_vocab(self, vocab: int) -> None:
        """Raise ValueError if an id does not fit a vocabulary of this size."""
        if self.kept and (largest := int(self.ids.max())) >= vocab:
            raise ValueError(f"targets hold token id {largest}, the student has {vocab} columns")

    def select(self, rows: Tensor | slice) -> Self:
        """The positions picked by a slice, an int64 index or a bool mask, in that order."""
        index = torch.arange(self.tokens, device=self.ids.device)[rows]
        counts = self.counts[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = self.offsets[:-1][index] - offsets[:-1]
        entries = torch.arange(int(offsets[-1]), device=self.ids.device)
        entries = entries + torch.repeat_interleave(shift, counts)
        return self._with(offsets, entries, index)

    def split(self, size: int) -> list[Self]:
        """Runs of `size` positions, the last one shorter; views, not copies."""
        starts = list(range(0, self.tokens, size))
        edges = self.offsets[[*starts, self.tokens]].tolist()
        return [
            self._with(
                self.offsets[start : start + size + 1] - edges[i],
                slice(edges[i], edges[i + 1]),
                slice(start, start + size),
            )
            for i, start in enumerate(starts)
        ]

    def to(self, device: torch.device | str) -> Self:
        """The same targets on another device."""
        tensors: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The positions of all parts, one after another.

        Raises:
            ValueError: no parts, or parts of different kind or temperature.
        """
        if not parts:
            raise ValueError("cat needs at least one part")
        first = parts[0]
        if any((p.bucket, p.temperature) != (first.bucket, first.temperature) for p in parts):
            raise ValueError("targets of different kinds or temperatures cannot be joined")
        starts = torch.tensor([0, *(p.kept for p in parts)]).cumsum(0).tolist()
        offsets = [p.offsets[:-1] + start for p, start in zip(parts, starts, strict=False)]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(p, name) for p in parts])
            for name in (*first.entry_fields, *first.token_fields)
        }
        joined["offsets"] = torch.cat([*offsets, first.offsets.new_tensor([starts[-1]])])
        return type(first)(**joined, bucket=first.bucket, temperature=first.temperature)

    def _with(self, offsets: Tensor, entries: Tensor | slice, rows: Tensor | slice) -> Self:
        picked = {name: getattr(self, name)[entries] for name in self.entry_fields}
        picked |= {name: getattr(self, name)[rows] for name in self.token_fields}
        return type(self)(offsets=offsets, **picked, bucket=self.bucket, temperature=self.temperature)
