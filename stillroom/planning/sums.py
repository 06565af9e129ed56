"""Parameters and bytes from a model's config.json, without loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BATCH = 512
"""Tokens that llama.cpp reads at once, for which a sliding window's cache has room besides the window."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    tied: bool
    context: int | None = None
    """Tokens of the longest text that it was made for."""
    window: int | None = None
    """Tokens that a layer with a sliding window sees; None: every layer sees the whole text."""
    every: int = 1
    """Of so many layers, one sees the whole text."""
    fused: bool = False
    """Whether queries, keys and values are one matrix, and the MLP's two first."""

    @staticmethod
    def of(config: dict[str, Any]) -> Shape:
        """From a transformers config.

        Raises:
            KeyError: the architecture does not name its sizes as Llama does.
        """
        heads = config["num_attention_heads"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            context=config.get("max_position_embeddings"),
            fused=config.get("model_type") == "phi3",
            **_windows(config.get("layer_types") or (), config.get("sliding_window")),
        )

    @staticmethod
    def known(config: dict[str, Any]) -> Shape | None:
        """From a transformers config, or None where it is not Llama-like."""
        try:
            return Shape.of(config)
        except KeyError:
            return None

    @staticmethod
    def read(folder: Path) -> Shape | None:
        """The shape of a model folder, or None where it is not Llama-like."""
        try:
            return Shape.known(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (ValueError, OSError):
            return None

    def cache_bytes(self, context: int, *, each: float = 2.0) -> int:
        """Bytes of the keys and values of so many tokens: 2 a layer, key-value head and value of a head.

        Args:
            context: tokens that are held.
            each: bytes of a value; llama.cpp's default is float16. A layer with a window holds that and one batch of 512.
        """
        row = 2 * self.kv_heads * self.head_size * each
        whole = self.layers if self.window is None else self.layers // self.every
        seen = min(context, (self.window or 0) + _BATCH)
        return int(row * (whole * context + (self.layers - whole) * seen))

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: attention, gated MLP, two norms."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden


def _windows(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """What a config's list of layers says about sliding windows."""
    if window is None or "sliding_attention" not in kinds:
        return {}
    whole = kinds.count("full_attention")
    return {"window": window, "every": len(kinds) // whole if whole else len(kinds) + 1}
