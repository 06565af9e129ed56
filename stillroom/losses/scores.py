"""A teacher's word on a few tokens that the student chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillroom.losses.fits import check_width
from stillroom.losses.logspace import exact


@dataclass(frozen=True, eq=False)
class ScoredTokens:
    """What the teacher thinks of tokens that the student chose, k at each of `tokens` positions.

    Two kinds. The student's own top-k, all else being one bucket whose mass follows from the sum: the loss is
    the KL between the distributions over scored tokens and bucket. A student's 16 likeliest tokens hold most
    of its mass, and reverse KL weighs by the student's mass. And the one token that the student drew: then the
    loss is an estimate that is right on average over the draws. Both serve reverse KL and skew reverse KL.

    Args:
        ids: int64 `[tokens, k]`, different within a position.
        teacher_logprobs: `[tokens, k]`, the teacher's log-probabilities of them at `temperature`; minus infinity
            for what the teacher forbids or lacks, such as padding columns.
        sampled: whether `ids` are drawn from the student itself, at `temperature`; then k is 1.
        temperature: at which the teacher's distribution was taken; the loss must use the same.
        vocab: how many tokens the teacher knows, so that the columns of the student's head from there on are
            padding, which the teacher forbids; None where they are as many as the student's columns.

    Raises:
        ValueError: shapes that do not fit, or a vocabulary below 1.
    """

    ids: Tensor
    teacher_logprobs: Tensor
    sampled: bool = False
    temperature: float = 1.0
    vocab: int | None = None

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape[1] < 1 or self.ids.shape != self.teacher_logprobs.shape:
            raise ValueError(
                "ids and teacher_logprobs must both be [tokens, k], "
                f"got {tuple(self.ids.shape)} and {tuple(self.teacher_logprobs.shape)}"
            )
        if self.sampled and self.ids.shape[1] != 1:
            raise ValueError(f"sampled tokens are one a position, got {self.ids.shape[1]}")
        check_width(self.vocab)

    @property
    def tokens(self) -> int:
        """How many positions."""
        return self.ids.shape[0]

    def log_tail(self) -> Tensor:
        """`[tokens]`, as exact as the device can: the log of the teacher's mass on all tokens that are not scored.

        At least log 1e-7: what log-probabilities in fp32 leave over is not known better, and a bucket that is
        almost empty must stay a finite place to push the student out of.
        """
        return (1 - exact(self.teacher_logprobs).exp().sum(-1)).clamp(min=1e-7).log()

    def select(self, rows: Tensor | slice) -> ScoredTokens:
        """The positions picked by a slice, an int64 index or a bool mask, in that order."""
        return replace(self, ids=self.ids[rows], teacher_logprobs=self.teacher_logprobs[rows])

    def split(self, size: int | Sequence[int]) -> list[ScoredTokens]:
        """Runs of `size` positions, the last one shorter, or of these sizes in turn; views, not copies."""
        sizes = size if isinstance(size, int) else list(size)
        pieces = zip(self.ids.split(sizes), self.teacher_logprobs.split(sizes), strict=True)
        return [replace(self, ids=ids, teacher_logprobs=scores) for ids, scores in pieces]

    def to(self, device: torch.device | str) -> ScoredTokens:
        """The same targets on another device."""
        return replace(self, ids=self.ids.to(device), teacher_logprobs=self.teacher_logprobs.to(device))

    @classmethod
    def cat(cls, parts: Sequence[ScoredTokens]) -> ScoredTokens:
        """The positions of all parts, one after another.

        Raises:
            ValueError: no parts, or parts of different kind, temperature, vocabulary or k.
        """
        if not parts:
            raise ValueError("cat needs at least one part")
        kinds = {(p.sampled, p.temperature, p.vocab, p.ids.shape[1]) for p in parts}
        if len(kinds) > 1:
            raise ValueError(
                f"scored tokens of different (sampled, temperature, vocab, k) cannot be joined: {kinds}"
            )
        ids, scores = (torch.cat([getattr(p, name) for p in parts]) for name in ("ids", "teacher_logprobs"))
        return replace(parts[0], ids=ids, teacher_logprobs=scores)
