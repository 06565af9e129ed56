"""A language model's output head: its weights, and what is done to its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A language-model head and what is done to its logits."""

    weight: Tensor
    """[vocab, hidden]"""
    bias: Tensor | None
    scale: float
    softcap: float | None
    lora: tuple[Tensor, Tensor, float] | None
    """(A [rank, hidden], B [vocab, rank], scale) of an adapter on the head."""


def head_of(model: Any) -> Head:
    """The head of a transformers causal model: weight, bias, logit scale, soft cap and adapter.

    Cohere multiplies logits by `logit_scale`, Granite divides them by `logits_scaling`, Gemma 2 caps them.
    """
    layer = model.get_output_embeddings()
    base = getattr(layer, "base_layer", layer)
    lora = None
    if getattr(layer, "active_adapters", None) and hasattr(layer, "lora_A") and not layer.disable_adapters:
        name = layer.active_adapters[0]
        lora = (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
    scale = float(getattr(model.config, "logit_scale", None) or 1.0)
    scale /= float(getattr(model.config, "logits_scaling", None) or 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return Head(base.weight, getattr(base, "bias", None), scale, float(cap) if cap else None, lora)
