"""Parameters and bytes from a model's config.json, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
