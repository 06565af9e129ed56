"""Rotary position embeddings in llama.cpp's terms: frequencies, their scaling, and the tensors that some kinds need."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

FloatArray = npt.NDArray[np.float32]


def rope_kind(config: PretrainedConfig) -> str:
    """`rope_type` of the layers that see the whole text."""
    return _rope(config).get("rope_type", "default")


def rotated_share(config: PretrainedConfig) -> float:
    """How much of each head is rotated, 0 to 1."""
    return _rope(config).get("partial_rotary_factor", 1.0)


def write_rope(writer: gguf.GGUFWriter, config: PretrainedConfig, head_size: int) -> None:
    """The keys under `rope.*`."""
    rope = _rope(config)
    writer.add_rope_dimension_count(int(head_size * rotated_share(config)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if local := config.rope_parameters.get("sliding_attention"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    kind = rope_kind(config)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(_stretch(config))
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
        # llama.cpp multiplies by the paper's factor itself; the key holds what is left.
        writer.add_rope_scaling_attn_factors(_yarn_attention(config) / _mscale(_stretch(config)))
    elif kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_longrope_attention(config))


def rope_tensors(config: PretrainedConfig, head_size: int) -> dict[str, FloatArray]:
    """What llama.cpp divides the rotary frequencies by, for the kinds that keep it in tensors: [rotated / 2] each."""
    rope = _rope(config)
    if rope_kind(config) == "llama3":
        return {"rope_freqs.weight": llama3_rope_factors(rope, head_size)}
    if rope_kind(config) == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    return {}


def original_context(config: PretrainedConfig) -> int | None:
    """Tokens beyond which longrope's other factors hold; None for other kinds."""
    return _rope(config)["original_max_position_embeddings"] if rope_kind(config) == "longrope" else None


def llama3_rope_factors(rope: dict[str, Any], size: int) -> FloatArray:
    """1 for short waves, `factor` for those longer than the original context, a linear blend between (Llama 3.1's
    scheme, as in transformers' `rope_type: llama3`)."""
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / waves
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """The settings; of the full layers where full and sliding ones rotate differently."""
    return config.rope_parameters.get("full_attention") or config.rope_parameters


def _stretch(config: PretrainedConfig) -> float:
    """How many times longer the context is than the original one."""
    rope = _rope(config)
    return rope.get("factor") or config.max_position_embeddings / rope["original_max_position_embeddings"]


def _mscale(stretch: float, weight: float = 1.0) -> float:
    """YaRN's factor on queries and keys (Peng et al. 2023, equation 22)."""
    return 1.0 if stretch <= 1 else 0.1 * weight * math.log(stretch) + 1


def _yarn_attention(config: PretrainedConfig) -> float:
    """What transformers multiplies cosines and sines by."""
    rope, stretch = _rope(config), _stretch(config)
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _mscale(stretch, rope["mscale"]) / _mscale(stretch, rope["mscale_all_dim"])
    return _mscale(stretch)


def _longrope_attention(config: PretrainedConfig) -> float:
    """What transformers multiplies cosines and sines by (Ding et al. 2024)."""
    rope, stretch = _rope(config), _stretch(config)
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if stretch <= 1:
        return 1.0
    return math.sqrt(1 + math.log(stretch) / math.log(rope["original_max_position_embeddings"]))
