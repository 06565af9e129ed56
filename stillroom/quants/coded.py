"""Block formats in torch: weights as the codes and scales that a file stores, their values, and their bytes.

`simulate` is what a quantisation-aware layer computes with, `code` what goes into the file: the values of both are
equal to the bit, and equal to what ggml's `dequantize_row_*` makes of the bytes.

Shape legend: N blocks, V weights of a block (32 or 256), S groups of a block that have a scale of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillroom.quants import packing
from stillroom.quants.blocks import block_format, row_size
from stillroom.quants.grids import affine_grids, codes_of, symmetric_steps
from stillroom.quants.packing import Blocks

_AT_ONCE = {"cpu": 1 << 16}
"""Weights that are searched at a time: what fits into a core's cache; elsewhere as many as `_MANY`."""
_MANY = 1 << 24
_FLOAT = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Form:
    """How the weights of a block become fields, and fields bytes.

    Args:
        group: weights that share a scale.
        low: the lowest code less what is added to store it; 0 for a grid with a minimum.
        high: the highest, likewise.
        pack: the bytes of blocks, uint8 [N, block size].
        sub_scales: the lowest and highest scale of a group, in units of the block's; None: groups have none.
        signed: codes are stored as they are, not with -low added.
    """

    group: int
    low: int
    high: int
    pack: Callable[[Blocks], Tensor]
    sub_scales: tuple[int, int] | None = None
    signed: bool = False

    @property
    def shift(self) -> int:
        return 0 if self.signed else -self.low

    def code(self, weights: Tensor) -> Blocks:
        """Weights float32 [N, V] as blocks."""
        groups = weights.unflatten(-1, (-1, self.group))
        empty = Blocks(weights, **(self._affine(groups) if self.low == 0 else self._symmetric(groups)))
        floors = empty.floors()
        above = groups if floors is None else groups - floors
        codes = codes_of(above, empty.slopes(), self.low, self.high).flatten(1)
        stored = codes.to(torch.int8) if self.signed else (codes + self.shift).to(torch.uint8)
        return replace(empty, codes=stored)

    def _symmetric(self, groups: Tensor) -> dict[str, Tensor]:
        """The scales of blocks [N, S, group], without minima."""
        steps = symmetric_steps(groups, self.low, self.high)[..., 0]
        if self.sub_scales is None:
            return {"scale": _half(steps[:, 0])}
        low, high = self.sub_scales
        largest = steps.gather(-1, steps.abs().argmax(-1, keepdim=True))
        scale = _half(largest[:, 0] / low)
        sub_scales = codes_of(steps, scale.float()[:, None], low, high).to(torch.int8)
        return {"scale": scale, "sub_scales": sub_scales}

    def _affine(self, groups: Tensor) -> dict[str, Tensor]:
        """The scales and minima of blocks [N, S, group]."""
        steps, minima = affine_grids(groups, self.high, reaches_zero=self.sub_scales is not None)
        if self.sub_scales is None:
            return {"scale": _half(steps[:, 0, 0]), "minimum": _half(minima[:, 0, 0])}
        found = {}
        for name, sub_name, values in (
            ("scale", "sub_scales", steps[..., 0]),
            ("minimum", "sub_minima", -minima[..., 0]),
        ):
            low, high = self.sub_scales
            found[name] = _half(values.amax(-1) / high)
            found[sub_name] = codes_of(values, found[name].float()[:, None], low, high).to(torch.uint8)
        return found

    def values(self, blocks: Blocks) -> Tensor:
        """What ggml makes of blocks: float32 [N, V]."""
        codes = blocks.codes.unflatten(-1, (-1, self.group)).float() - self.shift
        values, floors = blocks.slopes() * codes, blocks.floors()
        return (values if floors is None else values + floors).flatten(1)


def code(weights: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Rows of weights as the bytes of a format, and the values that those stand for.

    Args:
        weights: float32 [rows, columns], on any device.
        kind: a name in `stillroom.quants.FORMATS`.

    Returns:
        blocks uint8 [rows, row_size(kind, columns)], as they stand in a GGUF file, and float32 [rows, columns], equal to
        the bit to what `stillroom.quants.dequantise` makes of them. A row's depend on that row alone.

    Raises:
        ModelError: there is no such format, or rows are not whole blocks of it.
    """
    rows, columns = weights.shape
    width = row_size(kind, columns)
    if kind in _FLOAT:
        stored = weights.detach().to(_FLOAT[kind]).contiguous()
        return stored.view(torch.uint8).reshape(rows, width), stored.float()
    form = FORMS[kind]
    blocks = [(form.pack(piece), form.values(piece)) for piece in _coded(weights, kind)]
    packed, values = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return packed.reshape(rows, width), values.reshape(rows, columns)


def simulate(weights: Tensor, kind: str) -> Tensor:
    """The values of `code` with the gradient passed straight through to the weights.

    Straight-through estimator: Bengio et al., arXiv 1308.3432. Shapes and errors as those of `code`.
    """
    return _StraightThrough.apply(weights, kind)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weights: Tensor, kind: str) -> Tensor:
        row_size(kind, weights.shape[1])
        if kind in _FLOAT:
            return weights.to(_FLOAT[kind]).to(weights.dtype, copy=True)
        form = FORMS[kind]
        return torch.cat([form.values(piece) for piece in _coded(weights, kind)]).reshape(weights.shape)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _coded(weights: Tensor, kind: str) -> Iterator[Blocks]:
    """The blocks of weights [rows, columns], some at a time."""
    form, values = FORMS[kind], block_format(kind).values
    blocks = weights.detach().float().reshape(-1, values)
    for piece in blocks.split(_AT_ONCE.get(weights.device.type, _MANY) // values):
        yield form.code(piece)


def _half(values: Tensor) -> Tensor:
    """float16, the largest there is instead of infinity."""
    return values.clamp(-65504, 65504).to(torch.float16)


FORMS = {
    "Q8_0": Form(32, -127, 127, packing.pack_q8_0, signed=True),
    "Q4_0": Form(32, -8, 7, packing.pack_q4_0),
    "Q4_1": Form(32, 0, 15, packing.pack_q4_1),
    "Q5_0": Form(32, -16, 15, packing.pack_q5),
    "Q5_1": Form(32, 0, 31, packing.pack_q5),
    "Q2_K": Form(16, 0, 3, packing.pack_q2_k, (0, 15)),
    "Q3_K": Form(16, -4, 3, packing.pack_q3_k, (-32, 31)),
    "Q4_K": Form(32, 0, 15, packing.pack_q4_k, (0, 63)),
    "Q5_K": Form(32, 0, 31, packing.pack_q5_k, (0, 63)),
    "Q6_K": Form(16, -32, 31, packing.pack_q6_k, (-128, 127)),
}
"""The formats of integers, by name."""
