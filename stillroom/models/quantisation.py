"""Weights that are quantised while a transformers model is loaded."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from stillroom.contracts.errors import MissingExtra


def quantisation(dtype: str, compute: torch.dtype, *, setting: str, instead: str) -> dict[str, Any]:
    """What makes `from_pretrained` quantise weights: `8-bit` (arXiv 2208.07339) or `4-bit` (NF4, arXiv 2305.14314).

    Args:
        dtype: a recipe's number format; nothing comes of others.
        compute: the arithmetic of 4-bit weights.
        setting: the recipe's key that asks for it.
        instead: what can be done without the library.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    if dtype not in ("8-bit", "4-bit"):
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra(
            f"loading a model in {dtype} needs bitsandbytes",
            got=f"{setting}: {dtype}, and it is not installed",
            do=f"pip install bitsandbytes; or {instead}",
        )
    if dtype == "8-bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return {"quantization_config": nf4}
