"""Counter-based random numbers: a number is a hash of a token's key and a counter, not the next of a stream.

So a token's draws do not depend on its batch, its place in it, or the process that made them (Salmon et al.
2011). The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014), in wrapping int64 arithmetic, since
that runs on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64's constants, as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def mix(x: Tensor) -> Tensor:
    """int64 to int64, bijective, every output bit depending on every input bit."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniform(keys: Tensor, counter: Tensor | int) -> Tensor:
    """Uniform float64 in [0, 1) for each key and counter (int64, shapes broadcast)."""
    state = mix(mix(keys + _GOLDEN) + (torch.as_tensor(counter, device=keys.device) + 1) * _GOLDEN)
    return _shifted(state, 11).double() * 2.0**-53


def token_keys(row_key: str, positions: Tensor) -> Tensor:
    """Keys for the tokens of one row: int64, one for each int64 position.

    Args:
        row_key: the row's content key, 32 hex digits (see `stillroom.signals.row_key`).
        positions: int64, any shape: places of the predicted tokens in the row.
    """
    seed = int.from_bytes(bytes.fromhex(row_key)[:8], "little", signed=True)
    return mix(positions.to(torch.int64) * _GOLDEN + seed)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
