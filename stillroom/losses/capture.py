"""Queries, keys and values on their way through a live model, caught by hooks.

Nothing here knows a model library: a module is asked for the parts that attention modules of the Llama
family (Llama, Mistral, Qwen2, Qwen3...) and of the BERT family have. Whatever would make the captured queries
and keys differ from what the module really compares is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

PARTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
# Attributes of modules that change scores in ways which captured queries and keys do not show.
UNKNOWN_SCORES = ("attn_logit_softcapping", "sinks", "qk_norm")


@dataclass
class Captured:
    """What one attention module computed in the last forward pass, with its graph.

    Args:
        scale: what the module multiplies its scores by.
        query: `[rows, heads, len, dim]`, after norm and rotary embedding: what is really compared.
        key: `[rows, key heads, len, dim]`, likewise.
        value: `[rows, key heads, len, dim]`.
        output: `[rows, len, hidden]`, what the module returns: what the attention adds to the residual stream,
            or before its output projection in the BERT family.
    """

    scale: float
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


@contextmanager
def capture_attention(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Captured]]:
    """Within the context, every forward pass fills the dict: layer -> `Captured`.

    Works with any attention implementation (eager, SDPA, flash), since only the inputs of the scores are
    caught. Not with a filled key-value cache, nor with reentrant gradient checkpointing, whose first pass has
    no graph. A model that turns neighbouring channels (GLM) is not told from one that turns halves, unless its
    cosines show it (Cohere): compare one map with the model's own eager one before trusting a new family.

    Args:
        modules: layer -> attention module: `{12: model.model.layers[11].self_attn}`, with layers counted as in
            `map_layers`.

    Raises:
        ValueError: a module without separate projections, or whose scores are not plain scaled products.
    """
    caught: dict[int, Captured] = {}
    with ExitStack() as stack:
        for layer, module in modules.items():
            probe = _Probe(module)
            for handle in probe.handles:
                stack.callback(handle.remove)
            done = partial(_store, caught, layer, probe)
            stack.callback(module.register_forward_hook(done, with_kwargs=True).remove)
        yield caught


def _store(
    caught: dict[int, Captured],
    layer: int,
    probe: _Probe,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    caught[layer] = probe.finish(kwargs, output[0] if isinstance(output, tuple) else output)


class _Probe:
    """Hooks on the projections of one attention module, and what they saw last."""

    def __init__(self, module: nn.Module) -> None:
        kind = type(module).__name__
        found = [names for names in PARTS if all(hasattr(module, name) for name in names)]
        dim = getattr(module, "head_dim", getattr(module, "attention_head_size", None))
        if not found or dim is None:
            raise ValueError(
                f"{kind} has no separate query, key and value projections with a known head size"
            )
        for name in UNKNOWN_SCORES:
            if getattr(module, name, None) is not None:
                raise ValueError(
                    f"{kind} has {name}: its maps cannot be computed from queries and keys alone"
                )
        self.dim: int = dim
        self.scale = float(getattr(module, "scaling", dim**-0.5))
        self.rotary = bool(getattr(module, "use_rope", True))
        self.window: int | None = getattr(module, "sliding_window", None)
        self.norms = {"query": getattr(module, "q_norm", None), "key": getattr(module, "k_norm", None)}
        self.seen: dict[str, Tensor] = {}
        self.handles = [
            module.get_submodule(name).register_forward_hook(partial(self._see, part))
            for part, name in zip(("query", "key", "value"), found[0], strict=True)
        ]

    def _see(self, part: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen[part] = output

    def finish(self, kwargs: dict[str, Any], output: Tensor) -> Captured:
        """What was seen, in heads, normalised and rotated."""
        query, key, value = (self._heads(part) for part in ("query", "key", "value"))
        self.seen.clear()
        if self.window is not None and query.shape[2] > self.window:
            raise ValueError(f"a window of {self.window} hides part of the {query.shape[2]} tokens")
        embeddings = kwargs.get("position_embeddings")
        if embeddings is not None and self.rotary:
            query, key = (_rotate(x, embeddings) for x in (query, key))
        return Captured(self.scale, query, key, value, output)

    def _heads(self, part: str) -> Tensor:
        """`[rows, heads, len, dim]`, with the norm between projection and rotation where the module has one."""
        x, norm = self.seen[part], self.norms.get(part)
        weight = getattr(norm, "weight", None)
        # The norm is applied again: where the heads stand in its own output differs (Qwen3, Gemma 3), and its
        # width says whether it spans one head or all (OLMo 2).
        if norm is not None and weight is not None and weight.shape == x.shape[-1:]:
            x, norm = norm(x), None
        split = x.unflatten(-1, (-1, self.dim)).transpose(1, 2)
        if norm is None:
            return split
        if weight is None or weight.shape != (self.dim,):
            raise ValueError(f"the {part} norm {norm} spans neither one head of {self.dim} nor all of them")
        return norm(split)


def _rotate(x: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, halves against each other (Su et al. 2021, in Llama's order of channels).

    Channels beyond the width of cos pass unrotated, as in models with a partial rotary embedding.
    """
    if len(embeddings) != 2:
        raise ValueError(f"rotary embeddings must be the pair (cos, sin), got {len(embeddings)} parts")
    cos, sin = embeddings
    width = cos.shape[-1]
    if not cos[..., : width // 2].equal(cos[..., width // 2 :]):
        raise ValueError(f"the rotary embedding of width {width} does not turn halves against each other")
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos.unsqueeze(1) + torch.cat((-second, first), -1) * sin.unsqueeze(1)
    return torch.cat((turned, rest), -1)
