"""A teacher's distributions, each known by a few weighted tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stillroom.losses.divergences import check_temperature
from stillroom.losses.fits import check_distinct, check_ids, check_width
from stillroom.losses.logspace import exact


@dataclass(frozen=True, eq=False)
class SparseTargets:
    """A teacher's distributions over `tokens` positions, each known by a few tokens only; ragged.

    Position i keeps the entries `offsets[i]:offsets[i + 1]`. Three kinds, of which no loss takes one for another:

        unbiased      samples, whose weights are estimates of p and sum to one, so that every loss linear in p is
                      right on average (Anshumann et al. 2025): forward KL and cross-entropy
        bucket        top-k, and `tail_mass`, the mass of all other tokens together: forward KL
        renormalised  top-k of a teacher that says nothing of the others, summing to one: `renormalised_kl` only

    Args:
        ids: int64 `[kept]`, token ids.
        weights: float32 `[kept]`, the estimate of p at these ids.
        offsets: int64 `[tokens + 1]`, from 0 to kept.
        tail_mass: float32 `[tokens]`, mass that no entry represents; zero but for a bucket.
        entropy: float32 `[tokens]`, nats: the teacher's entropy at `temperature`, for a bucket that of the
            distribution over kept tokens and bucket, for renormalised top-k that of the weights. It makes the
            reported value a true KL.
        bucket: whether `tail_mass` is a bucket that the loss must match.
        temperature: at which the teacher's distribution was taken; the loss must use the same.
        renormalised: whether the weights are a renormalised top-k; see `renormalised_top_k`.
        vocab: how many tokens the teacher knows, so that the columns of the student's head from there on are
            padding, which gets none of the teacher's mass, and so none of a bucket's; None where they are as many
            as the student's columns.

    Raises:
        ValueError: lengths that do not fit, both kinds of top-k at once, or a vocabulary below 1.
    """

    ids: Tensor
    weights: Tensor
    offsets: Tensor
    tail_mass: Tensor
    entropy: Tensor
    bucket: bool = False
    temperature: float = 1.0
    renormalised: bool = False
    vocab: int | None = None

    # Which fields have one value an entry and one a token: a subclass adds its own, and `select`, `split`,
    # `cat` and `to` carry them along.
    entry_fields: ClassVar[tuple[str, ...]] = ("ids", "weights")
    token_fields: ClassVar[tuple[str, ...]] = ("tail_mass", "entropy")

    def __post_init__(self) -> None:
        if self.bucket and self.renormalised:
            raise ValueError("renormalised top-k knows no mass outside the kept tokens, so it has no bucket")
        check_width(self.vocab)
        for names, length in ((self.entry_fields, self.kept), (self.token_fields, self.tokens)):
            for name in names:
                if getattr(self, name).shape != (length,):
                    raise ValueError(
                        f"{name} must have shape ({length},), got {tuple(getattr(self, name).shape)}"
                    )

    @classmethod
    def renormalised_top_k(cls, ids: Tensor, scores: Tensor, temperature: float = 1.0) -> SparseTargets:
        """The k best tokens of a teacher that gives neither the others nor their mass.

        Where log-probabilities are to be had, their sum gives the tail: keep it, as a bucket.

        Args:
            ids: int64 `[tokens, k]`, different within a position.
            scores: `[tokens, k]`, logits or log-probabilities at T = 1, up to a constant a position.
            temperature: T > 0, applied here.

        Raises:
            ValueError: shapes that differ, an id that comes twice, or T not positive.
        """
        if ids.dim() != 2 or ids.shape != scores.shape or ids.shape[1] < 1:
            raise ValueError(
                f"ids and scores must both be [tokens, k], got {tuple(ids.shape)} and {tuple(scores.shape)}"
            )
        check_temperature(temperature)
        check_distinct(ids)
        weights = (exact(scores) / temperature).softmax(-1)
        tokens, k = ids.shape
        return SparseTargets(
            ids.flatten(),
            weights.flatten().float(),
            torch.arange(tokens + 1, device=ids.device) * k,
            torch.zeros(tokens, device=ids.device),
            torch.special.entr(weights).sum(-1).float(),
            temperature=temperature,
            renormalised=True,
        )

    @classmethod
    def certain(cls, labels: Tensor, like: SparseTargets | None = None) -> SparseTargets:
        """Labels as a teacher that is sure of each, so that cross-entropy is the forward KL from it.

        Args:
            labels: int64 `[tokens]`.
            like: targets that these are to be joined with: kind, temperature and vocabulary are theirs.
        """
        none = torch.zeros(labels.shape[0], device=labels.device)
        offsets = torch.arange(labels.shape[0] + 1, device=labels.device)
        kind: dict[str, Any] = {}
        if like is not None:
            names = ("bucket", "temperature", "renormalised", "vocab")
            kind = {name: getattr(like, name) for name in names}
        return SparseTargets(labels, none + 1, offsets, none, none, **kind)

    @property
    def kind(self) -> str:
        """Which of the three: "unbiased", "bucket" or "renormalised"."""
        return "bucket" if self.bucket else "renormalised" if self.renormalised else "unbiased"

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
        check_ids(self.ids, vocab)
        dense = torch.zeros(self.tokens, vocab, device=self.ids.device)
        return dense.index_put_((self.positions, self.ids), self.weights, accumulate=True)

    def select(self, rows: Tensor | slice) -> Self:
        """The positions picked by a slice, an int64 index or a bool mask, in that order."""
        index = torch.arange(self.tokens, device=self.ids.device)[rows]
        counts = self.counts[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = self.offsets[:-1][index] - offsets[:-1]
        entries = torch.arange(int(offsets[-1]), device=self.ids.device)
        entries = entries + torch.repeat_interleave(shift, counts)
        return self._with(offsets, entries, index)

    def split(self, size: int | Sequence[int]) -> list[Self]:
        """Runs of `size` positions, the last one shorter, or of these sizes in turn; views, not copies."""
        if isinstance(size, int):
            starts = [*range(0, self.tokens, size), self.tokens]
        else:
            starts = [0, *accumulate(size)]
        edges = self.offsets[starts].tolist()
        return [
            self._with(
                self.offsets[start : stop + 1] - edges[i], slice(edges[i], edges[i + 1]), slice(start, stop)
            )
            for i, (start, stop) in enumerate(pairwise(starts))
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
            ValueError: no parts, or parts of different kind, temperature or vocabulary.
        """
        if not parts:
            raise ValueError("cat needs at least one part")
        # Parts that know more than others leave it behind.
        first = min(parts, key=lambda part: len(fields(part)))
        kinds = {(p.kind, p.temperature, p.vocab) for p in parts}
        if len(kinds) > 1:
            raise ValueError(
                f"targets of different kinds, temperatures or vocabularies cannot be joined: {kinds}"
            )
        starts = torch.tensor([0, *(p.kept for p in parts)]).cumsum(0).tolist()
        offsets = [p.offsets[:-1] + start for p, start in zip(parts, starts, strict=False)]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(p, name) for p in parts])
            for name in (*first.entry_fields, *first.token_fields)
        }
        joined["offsets"] = torch.cat([*offsets, first.offsets.new_tensor([starts[-1]])])
        return replace(first, **joined)

    def _with(self, offsets: Tensor, entries: Tensor | slice, rows: Tensor | slice) -> Self:
        picked = {name: getattr(self, name)[entries] for name in self.entry_fields}
        picked |= {name: getattr(self, name)[rows] for name in self.token_fields}
        return replace(self, offsets=offsets, **picked)
