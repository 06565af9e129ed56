"""What a model family is called in GGUF, which tensors it has, and which of them are stored differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import ModelError
from stillroom.gguf.source import ModelFolder

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """One row of the table below."""

    gguf_arch: gguf.MODEL_ARCH
    permuted: bool
    """Whether llama.cpp rotates neighbouring values of Q and K, not halves, so that their rows must be reordered."""


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "MistralForCausalLM": Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "Qwen2ForCausalLM": Architecture(gguf.MODEL_ARCH.QWEN2, permuted=False),
    "Qwen3ForCausalLM": Architecture(gguf.MODEL_ARCH.QWEN3, permuted=False),
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file to be written, and how to get its values."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], FloatArray]


def architecture_of(folder: ModelFolder) -> Architecture:
    """The family of a folder; ModelError with llama.cpp's own command for those that we do not convert."""
    architecture = ARCHITECTURES.get(folder.architecture)
    if architecture is None:
        raise _unsupported(folder, folder.architecture, "one of " + ", ".join(ARCHITECTURES))
    config = folder.config
    if config.hidden_act != "silu":
        raise _unsupported(folder, f"activation {config.hidden_act}", "silu")
    if rope_type(folder) not in ("default", "linear", "llama3"):
        raise _unsupported(
            folder, f"rotary embedding of type {rope_type(folder)}", "default, linear or llama3"
        )
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(folder, "partial rotary embedding", "all of each head rotated")
    return architecture


def rope_type(folder: ModelFolder) -> str:
    return folder.config.rope_parameters.get("rope_type", "default")


def head_size(folder: ModelFolder) -> int:
    config = folder.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_hyperparameters(writer: gguf.GGUFWriter, folder: ModelFolder) -> None:
    """The keys that llama.cpp builds the network from."""
    config = folder.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(folder))
    writer.add_value_length(head_size(folder))
    writer.add_rope_dimension_count(head_size(folder))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if rope_type(folder) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def plan_tensors(folder: ModelFolder) -> list[PlannedTensor]:
    """Every tensor of the file, in the order in which it is written.

    Raises:
        ModelError: the folder lacks a tensor that the network needs, or has one that nobody would read.
    """
    architecture, config = architecture_of(folder), folder.config
    names = gguf.get_tensor_name_map(architecture.gguf_arch, config.num_hidden_layers)
    left = {name for name in folder.tensors if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        left.discard("lm_head.weight")
    planned = []
    missing = []
    for source in _required(folder):
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if source in left and target is not None:
            left.remove(source)
            planned.append(_planned(folder, architecture, source, target))
        else:
            missing.append(source)
    for source in sorted(left):
        # Biases are optional in these families: take those that are there.
        target = names.get_name(source, try_suffixes=(".bias",)) if source.endswith(".bias") else None
        if target is not None:
            left.remove(source)
            planned.append(_planned(folder, architecture, source, target))
    if missing or left:
        raise ModelError(
            "the weights are not those that config.json describes",
            got=f"missing: {', '.join(missing[:5]) or 'none'}; unknown: {', '.join(sorted(left)[:5]) or 'none'}",
            expected=f"the tensors of {folder.architecture} with {config.num_hidden_layers} layers",
            do="save the whole model with save_pretrained; merge an adapter into it first",
        )
    if rope_type(folder) == "llama3":
        factors = llama3_rope_factors(config.rope_parameters, head_size(folder))
        planned.append(PlannedTensor("rope_freqs.weight", factors.shape, lambda: factors))
    return planned


def permute_heads(weights: FloatArray, heads: int) -> FloatArray:
    """Rows of Q or K from halves (value i beside i + d/2) to neighbours (2i beside 2i + 1), head by head.

    transformers rotates the two halves of a head, llama.cpp's Llama rotates neighbouring values. Without this step
    the file loads and writes plausible, wrong text.
    """
    rows = weights.shape[0]
    return (
        weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def llama3_rope_factors(rope: dict, size: int) -> FloatArray:
    """What llama.cpp divides each rotary frequency by: 1 for short waves, `factor` for those longer than the original
    context, a linear blend between (Llama 3.1's scheme, as in transformers' `rope_type: llama3`)."""
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / waves
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _required(folder: ModelFolder) -> Iterator[str]:
    config = folder.config
    yield "model.embed_tokens.weight"
    yield "model.norm.weight"
    if not config.tie_word_embeddings:
        yield "lm_head.weight"
    parts = ["input_layernorm", "post_attention_layernorm"]
    parts += [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    if folder.architecture == "Qwen3ForCausalLM":
        parts += ["self_attn.q_norm", "self_attn.k_norm"]
    for layer in range(config.num_hidden_layers):
        yield from (f"model.layers.{layer}.{part}.weight" for part in parts)


def _planned(folder: ModelFolder, architecture: Architecture, source: str, target: str) -> PlannedTensor:
    def read() -> FloatArray:
        values = folder.read(source)
        if architecture.permuted and ".q_proj." in source:
            return permute_heads(values, folder.config.num_attention_heads)
        if architecture.permuted and ".k_proj." in source:
            return permute_heads(values, folder.config.num_key_value_heads)
        return values

    return PlannedTensor(target, folder.tensors[source].shape, read)


def _unsupported(folder: ModelFolder, got: str, expected: str) -> ModelError:
    return ModelError(
        "stillroom does not convert this kind of model to GGUF",
        got=got,
        expected=expected,
        do="use llama.cpp's own converter: "
        f"python convert_hf_to_gguf.py {folder.path} --outtype f16 --outfile model-F16.gguf",
    )
