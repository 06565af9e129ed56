"""How the codes and scales of a block lie in its bytes, as in `ggml-common.h` and `ggml-quants.c`.

Shape legend: N blocks, V weights of a block (32 or 256), S groups of a block that have a scale of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Some blocks of one format, as stored.

    A weight is `scale * sub_scale * (code - shift)`, and with minima `scale * sub_scale * code - minimum * sub_minimum`;
    without scales of its own a group's sub-scale is 1, its sub-minimum -1.
    """

    codes: Tensor
    """uint8 [N, V], or int8."""
    scale: Tensor
    """float16 [N]"""
    minimum: Tensor | None = None
    """float16 [N]"""
    sub_scales: Tensor | None = None
    """uint8 or int8 [N, S]"""
    sub_minima: Tensor | None = None
    """uint8 [N, S]"""

    def slopes(self) -> Tensor:
        """float32 [N, S, 1]: by how much a weight grows from code to code."""
        scale = self.scale.float()[:, None, None]
        return scale if self.sub_scales is None else scale * self.sub_scales.float()[..., None]

    def floors(self) -> Tensor | None:
        """float32 [N, S, 1]: the weight of code 0."""
        if self.minimum is None:
            return None
        minimum = self.minimum.float()[:, None, None]
        return minimum if self.sub_minima is None else -(minimum * self.sub_minima.float()[..., None])


def _together(numbers: Tensor, dim: int, bits: int) -> Tensor:
    """Small numbers along `dim` in one byte, the first in its lowest bits."""
    parts = (number << (bits * place) for place, number in enumerate(numbers.unbind(dim)))
    whole = next(parts).clone()
    for part in parts:
        whole |= part
    return whole


def _bytes(*parts: Tensor) -> Tensor:
    """Fields [N] or [N, ...] end to end, uint8 [N, bytes]."""
    return torch.cat([part.reshape(len(part), -1).contiguous().view(torch.uint8) for part in parts], dim=1)


def pack_q8_0(b: Blocks) -> Tensor:
    return _bytes(b.scale, b.codes)


def pack_q4_0(b: Blocks) -> Tensor:
    return _bytes(b.scale, _nibbles(b.codes, 16))


def pack_q4_1(b: Blocks) -> Tensor:
    assert b.minimum is not None
    return _bytes(b.scale, b.minimum, _nibbles(b.codes, 16))


def pack_q5(b: Blocks) -> Tensor:
    heads = [b.scale] if b.minimum is None else [b.scale, b.minimum]
    fifth = _together((b.codes >> 4).unflatten(-1, (4, 8)), -1, 1)
    return _bytes(*heads, fifth, _nibbles(b.codes & 15, 16))


def pack_q2_k(b: Blocks) -> Tensor:
    assert b.sub_scales is not None
    assert b.sub_minima is not None
    assert b.minimum is not None
    return _bytes(b.sub_scales | b.sub_minima << 4, _pairs(b.codes), b.scale, b.minimum)


def pack_q3_k(b: Blocks) -> Tensor:
    assert b.sub_scales is not None
    scales = (b.sub_scales + 32).to(torch.uint8)
    low = _together((scales & 15).unflatten(-1, (2, 8)), 1, 4)
    high = _together((scales >> 4).unflatten(-1, (4, 4)), 1, 2)
    return _bytes(_eighths(b.codes >> 2), _pairs(b.codes & 3), low, high, b.scale)


def pack_q4_k(b: Blocks) -> Tensor:
    return _bytes(*_scales_and_minima(b), _nibbles(b.codes, 32))


def pack_q5_k(b: Blocks) -> Tensor:
    return _bytes(*_scales_and_minima(b), _eighths(b.codes >> 4), _nibbles(b.codes & 15, 32))


def pack_q6_k(b: Blocks) -> Tensor:
    assert b.sub_scales is not None
    return _bytes(_nibbles(b.codes & 15, 64), _pairs(b.codes >> 4), b.sub_scales, b.scale)


def _nibbles(codes: Tensor, width: int) -> Tensor:
    """Codes of four bits: of each 2 * width the second half in the high nibbles of the first."""
    return _together(codes.unflatten(-1, (-1, 2, width)), -2, 4)


def _pairs(codes: Tensor) -> Tensor:
    """Codes of two bits: of each 128 the four quarters in one byte each."""
    return _together(codes.unflatten(-1, (2, 4, 32)), -2, 2)


def _eighths(bits: Tensor) -> Tensor:
    """One bit of each of 256 codes: those of 32 codes in the same bit of 32 bytes."""
    return _together(bits.unflatten(-1, (8, 32)), 1, 1)


def _scales_and_minima(b: Blocks) -> tuple[Tensor, ...]:
    """Eight scales and eight minima of six bits in twelve bytes, behind those of the block."""
    assert b.sub_scales is not None
    assert b.sub_minima is not None
    assert b.minimum is not None
    scales, minima = b.sub_scales, b.sub_minima
    first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, minima)]
    return b.scale, b.minimum, *first, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
