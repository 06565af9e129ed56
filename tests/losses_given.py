"""What tests of losses share: a seed for each test, the divergences by name, and a distance from float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillroom.losses import (
    alpha_beta,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "alpha_beta": alpha_beta,
    "total_variation": total_variation,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test of a module that imports this starts from the same random state."""
    torch.manual_seed(0)


def distance(got: Tensor, want: Tensor) -> float:
    """How far from the wanted values, relative to their norm."""
    return float((got.detach().double() - want).norm() / want.norm())
