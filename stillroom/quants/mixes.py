"""Which block format each tensor gets: the recipes behind names like Q4_K_M.

The rules are those of llama.cpp's quantiser for dense models (`llama_tensor_get_type_impl` and `tensor_type_fallback`
in `llama-quant.cpp`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gguf

from stillroom.contracts.errors import ModelError
from stillroom.quants.blocks import block_format, row_size


@dataclass(frozen=True)
class Network:
    """What the rules ask about a model."""

    layers: int
    sharing: int
    """Query heads that share a key-value head."""
    of_70b: bool = False
    """Whether llama.cpp takes it for a 70B model."""
    weighed: bool = False
    """Whether its columns are weighed by an importance matrix."""

    @classmethod
    def of(
        cls, architecture: gguf.MODEL_ARCH, *, layers: int, heads: int, kv_heads: int, weighed: bool
    ) -> Network:
        """The network of a model's configuration."""
        # llama.cpp knows models by their number of layers: 80 is 70B, but for a Llama of 65B, whose heads share nothing.
        known = architecture == gguf.MODEL_ARCH.QWEN2 or (
            architecture == gguf.MODEL_ARCH.LLAMA and heads != kv_heads
        )
        return cls(layers, heads // kv_heads, of_70b=known and layers == 80, weighed=weighed)


Where = Callable[[int, Network], bool]
"""Whether a rule holds at a layer, counted from 0."""


def _everywhere(layer: int, network: Network) -> bool:
    return True


def _spread(layer: int, network: Network) -> bool:
    """The first and last eighth, and every third layer between."""
    eighth = network.layers // 8
    return layer < eighth or layer >= 7 * network.layers // 8 or (layer - eighth) % 3 == 2


def _first(count: int) -> Where:
    return lambda layer, network: layer < count


def _first_share(parts: int) -> Where:
    """The first of `parts` equal parts; none of a network of fewer layers."""
    return lambda layer, network: layer < network.layers // parts


def _four_share(layer: int, network: Network) -> bool:
    return network.sharing >= 4


def _first_eighth_if_weighed(layer: int, network: Network) -> bool:
    return network.weighed and layer < network.layers // 8


Choice = tuple[tuple[str, Where], ...]
"""Formats and where they are taken: the first that holds; where none does, the base of the mix."""


@dataclass(frozen=True)
class Mix:
    """A named recipe."""

    file_type: gguf.LlamaFileType
    """What `general.file_type` in the file says."""
    base: str
    """Format of ordinary matrices."""
    head: str
    """Format of the output head, or of the embedding where the two are one."""
    attn_v: Choice = ()
    """The values' projection, and the one that holds queries, keys and values in one."""
    ffn_down: Choice = ()
    attn_output: Choice = ()

    @property
    def weighs(self) -> bool:
        """Whether an importance matrix changes anything."""
        return self.base not in ("F32", "F16", "BF16", "Q8_0")


_TYPE = gguf.LlamaFileType
_Q3: Choice = (("Q3_K", _everywhere),)
_Q4: Choice = (("Q4_K", _everywhere),)
_OFTEN_Q6: Choice = (("Q6_K", _spread),)

MIXES = {
    "F32": Mix(_TYPE.ALL_F32, "F32", "F32"),
    "F16": Mix(_TYPE.MOSTLY_F16, "F16", "F16"),
    "BF16": Mix(_TYPE.MOSTLY_BF16, "BF16", "BF16"),
    "Q8_0": Mix(_TYPE.MOSTLY_Q8_0, "Q8_0", "Q8_0"),
    "Q6_K": Mix(_TYPE.MOSTLY_Q6_K, "Q6_K", "Q6_K"),
    "Q5_K_M": Mix(_TYPE.MOSTLY_Q5_K_M, "Q5_K", "Q6_K", attn_v=_OFTEN_Q6, ffn_down=_OFTEN_Q6),
    "Q4_K_M": Mix(_TYPE.MOSTLY_Q4_K_M, "Q4_K", "Q6_K", attn_v=_OFTEN_Q6, ffn_down=_OFTEN_Q6),
    "Q4_K_S": Mix(
        _TYPE.MOSTLY_Q4_K_S,
        "Q4_K",
        "Q6_K",
        attn_v=(("Q5_K", _first(4)),),
        ffn_down=(("Q5_K", _first_share(8)),),
    ),
    "Q4_0": Mix(_TYPE.MOSTLY_Q4_0, "Q4_0", "Q6_K", ffn_down=(("Q4_1", _first_eighth_if_weighed),)),
    "Q3_K_M": Mix(
        _TYPE.MOSTLY_Q3_K_M,
        "Q3_K",
        "Q6_K",
        attn_v=(("Q5_K", _first(2)), *_Q4),
        ffn_down=(("Q5_K", _first_share(16)), *_Q4),
        attn_output=_Q4,
    ),
    "Q2_K": Mix(
        _TYPE.MOSTLY_Q2_K,
        "Q2_K",
        "Q6_K",
        attn_v=(("Q4_K", _four_share), *_Q3),
        ffn_down=_Q3,
        attn_output=_Q3,
    ),
}

_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
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


def plan_mix(tensors: Iterable[tuple[str, tuple[int, ...]]], kind: str, network: Network) -> list[MixRow]:
    """The format of every tensor.

    Args:
        tensors: GGUF name and shape [rows, columns] (or [values]) of each, in the order of the file.
        kind: a name in `MIXES`.
        network: the model that they are of.

    Returns:
        One row a tensor, in the same order.
    """
    mix, listed = mix_of(kind), list(tensors)
    tied = all(name != "output.weight" for name, _ in listed)
    rows = []
    for name, shape in listed:
        wanted = "F32" if len(shape) == 1 else _wanted(name, mix, network, tied)
        stored, columns, count = _fit(wanted, shape[-1]), shape[-1], math.prod(shape)
        rows.append(MixRow(name, stored, wanted, count // columns * row_size(stored, columns), count))
    return rows


def _wanted(name: str, mix: Mix, network: Network, tied: bool) -> str:
    """What the recipe says of a matrix."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return mix.head
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_qkv|ffn_down|attn_output)\.weight", name)
    if match is None:
        return mix.base
    layer, role = int(match[1]), match[2]
    values = role in ("attn_v", "attn_qkv")
    choice = mix.attn_v if values else mix.ffn_down if role == "ffn_down" else mix.attn_output
    kind = next((kind for kind, where in choice if where(layer, network)), mix.base)
    # Eight query heads of a 70B model share one of attn_v, which is small: more bits cost next to nothing.
    return "Q5_K" if values and network.of_70b and kind in ("Q3_K", "Q4_K") else kind


def _fit(kind: str, columns: int) -> str:
    """`kind`, or what replaces it where a row of `columns` weights is not whole blocks of it."""
    if columns % block_format(kind).values == 0:
        return kind
    smaller = _FALLBACK.get(kind, "F16")
    return smaller if columns % block_format(smaller).values == 0 else "F16"
