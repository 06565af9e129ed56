"""Whether what a teacher said of a few tokens fits the logits that it is compared with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stillroom.losses.divergences import check_temperature


class Known(Protocol):
    """What `SparseTargets` and `ScoredTokens` have in common."""

    @property
    def tokens(self) -> int:
        """How many positions."""
        ...

    @property
    def temperature(self) -> float:
        """At which the teacher's distribution was taken."""
        ...


def check_fit(targets: Known, shape: tuple[int, ...] | torch.Size, temperature: float, taken: str) -> None:
    """Raise ValueError unless the targets, "captured" or "scored", are of so many positions and this temperature."""
    check_temperature(temperature)
    if len(shape) != 2 or shape[0] != targets.tokens:
        raise ValueError(
            f"student logits must be [{targets.tokens}, vocab] for these targets, got {tuple(shape)}"
        )
    if targets.temperature != temperature:
        raise ValueError(
            f"these targets were {taken} at temperature {targets.temperature}, the loss asks for {temperature}"
        )


def check_ids(ids: Tensor, columns: int) -> None:
    """Raise ValueError unless each id, of any shape, has one of so many columns."""
    if not ids.numel():
        return
    low, high = (int(extreme) for extreme in torch.aminmax(ids))
    if low < 0 or high >= columns:
        raise ValueError(f"targets hold token ids {low} to {high}, but there are {columns} columns")


def check_distinct(ids: Tensor) -> None:
    """Raise ValueError if an id comes twice in a row of `[tokens, k]`."""
    ordered = ids.sort(-1).values
    twice = (ordered.diff(dim=-1) == 0).any(-1)
    if twice.any():
        raise ValueError(f"an id comes twice at position {int(twice.nonzero()[0])}")


def check_width(vocab: int | None) -> None:
    """Raise ValueError unless this can be the number of tokens that a teacher knows; None is no word on it."""
    if vocab is not None and vocab < 1:
        raise ValueError(
            f"vocab must be at least 1, or None for the width of the student's head; got {vocab}"
        )
