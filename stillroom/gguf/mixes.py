"""Which block format each tensor gets: the recipes behind names like Q4_K_M.

The rules are those of llama.cpp's quantiser for dense models (`llama-quant.cpp`), without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import gguf

from stillroom.contracts.errors import ModelError
from stillroom.quants import block_format, row_size


@dataclass(frozen=True)
class Mix:
    """A named recipe."""

    base: str
    """Format of ordinary matrices."""
    more: str
    """Format of `attn_v` and `ffn_down` in the layers that matter most."""
    output: str
    """Format of the output head, or of the embedding where the two are one."""
    file_type: gguf.LlamaFileType
    """What `general.file_type` in the file says."""


MIXES = {
    "F32": Mix("F32", "F32", "F32", gguf.LlamaFileType.ALL_F32),
    "F16": Mix("F16", "F16", "F16", gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": Mix("Q8_0", "Q8_0", "Q8_0", gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q6_K": Mix("Q6_K", "Q6_K", "Q6_K", gguf.LlamaFileType.MOSTLY_Q6_K),
    "Q5_K_M": Mix("Q5_K", "Q6_K", "Q6_K", gguf.LlamaFileType.MOSTLY_Q5_K_M),
    "Q4_K_M": Mix("Q4_K", "Q6_K", "Q6_K", gguf.LlamaFileType.MOSTLY_Q4_K_M),
}

_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a format of 256 weights a block where rows are not whole blocks of it."""


@dataclass(frozen=True)
class MixRow:
    """One tensor of a file: what it was stored as, and what the recipe asked for."""

    tensor: str
    kind: str
    wanted: str
    bytes: int
    parameters: int

    @property
    def fell_back(self) -> bool:
        return self.kind != self.wanted


def mix_of(kind: str) -> Mix:
    """The recipe called `kind`; ModelError when there is none."""
    try:
        return MIXES[kind]
    except KeyError:
        raise ModelError(
            "unknown kind of model file",
            got=kind,
            expected="one of " + ", ".join(MIXES),
            do="choose a listed kind",
        ) from None


def plan_mix(
    tensors: Iterable[tuple[str, tuple[int, ...]]], kind: str, *, layers: int, heads_shared: bool
) -> list[MixRow]:
    """The format of every tensor.

    Args:
        tensors: GGUF name and shape [rows, columns] (or [values]) of each, in the order of the file.
        kind: a name in `MIXES`.
        layers: blocks of the model.
        heads_shared: whether several query heads share a key-value head.

    Returns:
        One row a tensor, in the same order.
    """
    mix, listed = mix_of(kind), list(tensors)
    tied = all(name != "output.weight" for name, _ in listed)
    rows = []
    for name, shape in listed:
        wanted = _wanted(name, shape, mix, layers=layers, heads_shared=heads_shared, tied=tied)
        stored = _fit(wanted, shape[-1])
        count = 1
        for extent in shape:
            count *= extent
        rows.append(MixRow(name, stored, wanted, count // shape[-1] * row_size(stored, shape[-1]), count))
    return rows


def _wanted(
    name: str, shape: tuple[int, ...], mix: Mix, *, layers: int, heads_shared: bool, tied: bool
) -> str:
    if len(shape) == 1:
        return "F32"
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return mix.output
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if match is None:
        return mix.base
    if _more_bits(int(match[1]), layers):
        return mix.more
    # 80 layers of which heads share keys and values is how llama.cpp tells a 70B Llama: its attn_v is eight times
    # smaller than attn_q, so more bits cost next to nothing.
    if match[2] == "attn_v" and layers == 80 and heads_shared and mix.base == "Q4_K":
        return "Q5_K"
    return mix.base


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fit(kind: str, columns: int) -> str:
    """`kind`, or what replaces it where a row of `columns` weights is not whole blocks of it."""
    if columns % block_format(kind).values == 0:
        return kind
    smaller = _FALLBACK.get(kind, "F16")
    return smaller if columns % block_format(smaller).values == 0 else "F16"
