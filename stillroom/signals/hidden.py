"""Signals that are exact: the teacher's last hidden state at each token, which its head makes the logits of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.losses import TeacherHead
from stillroom.signals.head import BookHead

_COLUMNS = 1 << 14
"""Tokens whose logits are computed at once, so that no second copy of a large head is made."""


@dataclass(frozen=True, eq=False)
class HiddenSignals:
    """The teacher's last hidden states over some positions, and the head that they enter.

    They know no temperature: a loss may take them at any, and any divergence may be had from them.

    Args:
        hidden: `[tokens, width]`, after the final norm, in the numbers that the book keeps; see `of`.
        head: the teacher's head, the same object for all rows of a book.
    """

    hidden: Tensor
    head: BookHead

    @classmethod
    def of(cls, states: Tensor, head: BookHead) -> HiddenSignals:
        """Round the hidden states of a teacher, `[tokens, width]` of any floating dtype, to what the book keeps.

        Raises:
            ValueError: states of another width than the head's.
            BookError: NaN, infinity, or a state that float16 does not hold.
        """
        if states.dim() != 2 or states.shape[1] != head.facts.width:
            raise ValueError(f"states must be [tokens, {head.facts.width}], got {tuple(states.shape)}")
        hidden = states.detach().to(head.states)
        if not bool(hidden.isfinite().all()):
            largest = float(states.abs().max())
            raise BookError(
                f"a hidden state of the teacher is no number that {head.facts.states} holds",
                got=f"up to {largest:g} in {str(states.dtype).removeprefix('torch.')}",
                do="load the teacher in bfloat16 (teacher.dtype: bfloat16), whose numbers reach as far as float32's",
            )
        return cls(hidden, head)

    @property
    def tokens(self) -> int:
        """How many positions."""
        return self.hidden.shape[0]

    def teacher(self) -> TeacherHead:
        """What the losses take. The states are widened to the head's own dtype, in which the teacher computed."""
        facts, weight = self.head.facts, self.head.weight
        return TeacherHead(self.hidden.to(weight.dtype), weight, self.head.bias, facts.scale, facts.softcap)

    def logits(self) -> Tensor:
        """The teacher's logits, float32 `[tokens, vocab]`."""
        facts, hidden = self.head.facts, self.hidden.float()
        found = torch.cat([hidden @ part.float().T for part in self.head.weight.split(_COLUMNS)], 1)
        if self.head.bias is not None:
            found += self.head.bias.float()
        found *= facts.scale
        return found if facts.softcap is None else found.div_(facts.softcap).tanh_().mul_(facts.softcap)

    def chances(self, token_ids: Tensor) -> Tensor:
        """The teacher's probability of one token at each position, at T = 1: int64 `[tokens]` to float32 `[tokens]`."""
        return self.logits().softmax(-1).gather(1, token_ids[:, None]).squeeze(1)

    def select(self, rows: Tensor | slice) -> HiddenSignals:
        """The positions picked by a slice, an int64 index or a bool mask, in that order."""
        return replace(self, hidden=self.hidden[rows])

    def to(self, device: torch.device | str) -> HiddenSignals:
        """The same signals, and their head, on another device; the head goes there once."""
        return HiddenSignals(self.hidden.to(device), self.head.to(device))

    @classmethod
    def cat(cls, parts: Sequence[HiddenSignals]) -> HiddenSignals:
        """The positions of all parts, one after another.

        Raises:
            ValueError: no parts, or parts under different heads.
        """
        if not parts:
            raise ValueError("cat needs at least one part")
        if any(part.head.facts != parts[0].head.facts for part in parts):
            raise ValueError("hidden states under different heads cannot be joined")
        return cls(torch.cat([part.hidden for part in parts]), parts[0].head)

    def bytes_per_token(self, vocab: int) -> float:
        """Bytes on disk a token, whatever the vocabulary; the head, which a book holds once, is not counted."""
        return float(2 * self.head.facts.width)

    def columns(self, bits: int) -> list[NDArray[Any]]:
        """What a row holds of them: the states, two bytes a number."""
        return [self.hidden.cpu().contiguous().view(torch.int16).numpy().astype("<i2", copy=False)]


def hidden_read(data: NDArray[np.int16], head: BookHead) -> HiddenSignals:
    """Signals of the numbers on disk, `[tokens * width]` little-endian; a copy of the row, nothing more."""
    numbers = torch.from_numpy(data.astype(np.int16)).view(head.states)
    return HiddenSignals(numbers.view(-1, head.facts.width), head)
