"""The model families that are converted: what llama.cpp builds for each, and what it takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
from transformers import PretrainedConfig

from stillroom.contracts.errors import ModelError
from stillroom.gguf.rope import rope_kind, rotated_share
from stillroom.gguf.source import ModelFolder

_NORMS = ("input_layernorm", "post_attention_layernorm")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION = (*_QKV, "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_INNER_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Assumption:
    """Something that llama.cpp builds in and no key of the file can change."""

    setting: str
    """Its name in config.json."""
    expected: str
    holds: Callable[[PretrainedConfig], bool]


@dataclass(frozen=True)
class Family:
    """One row of the table below."""

    arch: gguf.MODEL_ARCH
    layer: tuple[str, ...]
    """Modules of each layer that have weights, as transformers names them."""
    biases: tuple[str, ...] = ()
    """Those of them whose bias llama.cpp adds where there is one."""
    rope: tuple[str, ...] = ("default", "linear", "yarn")
    """Kinds of rotary embedding that llama.cpp's graph has."""
    partly_rotated: bool = False
    """Whether heads may be rotated in part."""
    permuted: bool = False
    """Whether llama.cpp rotates neighbouring values of Q and K, not halves, so that their rows must be reordered."""
    norm_offset: float = 0.0
    """What the network adds to a norm's weights and llama.cpp does not."""
    activation: str = "silu"
    windows: bool = False
    """Whether llama.cpp has sliding windows for it; otherwise every layer sees the whole text."""
    assumptions: tuple[Assumption, ...] = ()


def _gemma_scale(large: int) -> Assumption:
    """llama.cpp tells the 27B by its `large` layers and scales its attention by width, all others' by head size."""
    return Assumption(
        "query_pre_attn_scalar",
        f"head_dim, or with {large} layers hidden_size / num_attention_heads",
        lambda config: (
            config.query_pre_attn_scalar
            == (
                config.hidden_size // config.num_attention_heads
                if config.num_hidden_layers == large
                else config.head_dim
            )
        ),
    )


def _without(setting: str, none: str = "false") -> Assumption:
    return Assumption(setting, none, lambda config: not getattr(config, setting))


def _with(setting: str, some: str = "true") -> Assumption:
    return Assumption(setting, some, lambda config: bool(getattr(config, setting)))


_GEMMA = (
    _with("tie_word_embeddings"),
    _without("use_bidirectional_attention"),
    _without("attention_bias"),
)
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_EVERY_FOURTH_UNROTATED = Assumption(
    "no_rope_layers",
    "0 in every fourth layer and 1 elsewhere",
    lambda config: config.no_rope_layers == [int(i % 4 != 3) for i in range(config.num_hidden_layers)],
)
_LOCALLY_UNSCALED = Assumption(
    "rope_parameters",
    "sliding_attention of rope_type default",
    lambda config: config.rope_parameters["sliding_attention"]["rope_type"] == "default",
)

_LLAMA = Family(
    gguf.MODEL_ARCH.LLAMA,
    (*_NORMS, *_ATTENTION, *_MLP),
    biases=(*_ATTENTION, *_MLP),
    rope=("default", "linear", "llama3", "yarn", "longrope"),
    permuted=True,
)

FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": Family(
        gguf.MODEL_ARCH.SMOLLM3,
        (*_NORMS, *_ATTENTION, *_MLP),
        permuted=True,
        assumptions=(_without("attention_bias"), _without("mlp_bias"), _EVERY_FOURTH_UNROTATED),
    ),
    "Qwen2ForCausalLM": Family(gguf.MODEL_ARCH.QWEN2, (*_NORMS, *_ATTENTION, *_MLP), biases=_QKV),
    "Qwen3ForCausalLM": Family(
        gguf.MODEL_ARCH.QWEN3,
        (*_NORMS, *_ATTENTION, *_HEAD_NORMS, *_MLP),
        assumptions=(_without("attention_bias"),),
    ),
    "Phi3ForCausalLM": Family(
        gguf.MODEL_ARCH.PHI3,
        (*_NORMS, "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        rope=("default", "longrope"),
        partly_rotated=True,
    ),
    "Gemma2ForCausalLM": Family(
        gguf.MODEL_ARCH.GEMMA2,
        (*_NORMS, *_INNER_NORMS, *_ATTENTION, *_MLP),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        windows=True,
        assumptions=(*_GEMMA, *(_with(cap, "a number") for cap in _CAPS), _gemma_scale(large=46)),
    ),
    "Gemma3ForCausalLM": Family(
        gguf.MODEL_ARCH.GEMMA3,
        (*_NORMS, *_INNER_NORMS, *_ATTENTION, *_HEAD_NORMS, *_MLP),
        # llama.cpp would apply YaRN's factor to the local layers too.
        rope=("default", "linear"),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        windows=True,
        assumptions=(
            _LOCALLY_UNSCALED,
            *_GEMMA,
            *(_without(cap, "null") for cap in _CAPS),
            _gemma_scale(large=62),
        ),
    ),
}
"""By the name in config.json's `architectures`."""


def family_of(folder: ModelFolder) -> Family:
    """The family of a folder; ModelError with llama.cpp's own command for what we do not convert."""
    family = FAMILIES.get(folder.architecture)
    if family is None:
        raise _unsupported(folder, folder.architecture, "one of " + ", ".join(FAMILIES))
    config = folder.config
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        raise _unsupported(folder, f"activation {activation}", family.activation)
    if rope_kind(config) not in family.rope:
        raise _unsupported(
            folder, f"rotary embedding of type {rope_kind(config)}", "one of " + ", ".join(family.rope)
        )
    if rotated_share(config) != 1 and not family.partly_rotated:
        raise _unsupported(folder, "partial rotary embedding", "all of each head rotated")
    for assumption in family.assumptions:
        if not assumption.holds(config):
            got = f"{assumption.setting}: {getattr(config, assumption.setting)}"
            raise _unsupported(folder, got, f"{assumption.setting}: {assumption.expected}")
    if family.windows and window_of(config) is not None and _window_period(config) is None:
        raise _unsupported(
            folder, f"layer_types: {config.layer_types}", "sliding windows with every n-th layer full"
        )
    return family


def window_of(config: PretrainedConfig) -> int | None:
    """Tokens that the sliding layers see, themselves included; None when every layer sees the whole text."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def context_length(family: Family, config: PretrainedConfig) -> int:
    """Longest text that llama.cpp reads as the model does: where llama.cpp lacks the model's sliding window, the
    window."""
    window = None if family.windows else window_of(config)
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def write_hyperparameters(writer: gguf.GGUFWriter, family: Family, config: PretrainedConfig) -> None:
    """The keys that llama.cpp builds the network from, all but those of the rotary embedding."""
    writer.add_context_length(context_length(family, config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    window = window_of(config)
    if family.windows and window is not None:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern(_window_period(config))
    if cap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)


def head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _window_period(config: PretrainedConfig) -> int | None:
    """n such that every n-th layer sees the whole text and the others a window; None when they alternate otherwise."""
    full = [kind == "full_attention" for kind in config.layer_types]
    period = full.index(True) + 1 if any(full) else len(full) + 1
    return period if full == [i % period == period - 1 for i in range(len(full))] else None


def _unsupported(folder: ModelFolder, got: str, expected: str) -> ModelError:
    return ModelError(
        "stillroom does not convert this kind of model to GGUF",
        got=got,
        expected=expected,
        do="use llama.cpp's own converter: "
        f"python convert_hf_to_gguf.py {folder.path} --outtype f16 --outfile model-F16.gguf",
    )
