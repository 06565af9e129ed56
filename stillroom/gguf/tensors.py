"""The tensors of a model file: which there are, what they are called, and which are stored differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
import torch
from transformers import PretrainedConfig

from stillroom.contracts.errors import ModelError
from stillroom.gguf.families import Family, family_of, head_size
from stillroom.gguf.rope import rope_tensors
from stillroom.gguf.source import ModelFolder

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file to be written, and how to get its values, of any float type."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def plan_tensors(folder: ModelFolder) -> list[PlannedTensor]:
    """Every tensor of the file, in the order in which it is written.

    Raises:
        ModelError: the folder lacks a tensor that the network needs, or has one that nobody would read.
    """
    family, config = family_of(folder), folder.config
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    left = {name for name in folder.tensors if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        left.discard("lm_head.weight")
    required = list(_required(folder, family))
    taken = [*required, *(name for name in _optional(folder, family) if name in left)]
    missing = [name for name in required if name not in left]
    unknown = sorted(left.difference(taken))
    if missing or unknown:
        raise ModelError(
            "the weights are not those that config.json describes",
            got=f"missing: {', '.join(missing[:5]) or 'none'}; unknown: {', '.join(unknown[:5]) or 'none'}",
            expected=f"the tensors of {folder.architecture} with {config.num_hidden_layers} layers",
            do="save the whole model with save_pretrained; merge an adapter into it first",
        )
    if folder.tensors[_EMBEDDING].shape[0] != config.vocab_size:
        raise ModelError(
            "the embedding has not as many rows as config.json says",
            got=f"{folder.tensors[_EMBEDDING].shape[0]} rows, vocab_size {config.vocab_size}",
            expected="the same number",
            do="resize with resize_token_embeddings and save the model again",
        )
    planned = []
    for source in taken:
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert target is not None, source
        planned.append(PlannedTensor(target, folder.tensors[source].shape, _reader(folder, family, source)))
    planned += [
        PlannedTensor(name, factors.shape, constant(torch.from_numpy(factors)))
        for name, factors in rope_tensors(config, head_size(config)).items()
    ]
    return planned


def constant(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What reads a tensor that is already in memory."""
    return lambda: values


def as_stored(values: torch.Tensor, source: str, family: Family, config: PretrainedConfig) -> torch.Tensor:
    """A tensor's values as llama.cpp wants them, rows of Q and K in its order and norms without an offset.

    Args:
        values: [rows, ...] as transformers has them.
        source: transformers' name of the tensor or of the module that it belongs to.
    """
    if source.endswith("norm.weight") and family.norm_offset:
        return values.float() + family.norm_offset
    if family.permuted and ".q_proj" in source:
        return permute_heads(values, config.num_attention_heads)
    if family.permuted and ".k_proj" in source:
        return permute_heads(values, config.num_key_value_heads)
    return values


def permute_heads(weights: torch.Tensor, heads: int) -> torch.Tensor:
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


def _required(folder: ModelFolder, family: Family) -> Iterator[str]:
    yield _EMBEDDING
    yield "model.norm.weight"
    if not folder.config.tie_word_embeddings:
        yield "lm_head.weight"
    for layer in range(folder.config.num_hidden_layers):
        yield from (f"model.layers.{layer}.{part}.weight" for part in family.layer)


def _optional(folder: ModelFolder, family: Family) -> Iterator[str]:
    for layer in range(folder.config.num_hidden_layers):
        yield from (f"model.layers.{layer}.{part}.bias" for part in family.biases)


def _reader(folder: ModelFolder, family: Family, source: str) -> Callable[[], torch.Tensor]:
    return lambda: as_stored(folder.read(source), source, family, folder.config)
