"""What the hardware is quick at, and where a model runs on it."""

from __future__ import annotations

from typing import Any

import torch


def bfloat16_is_quick() -> bool:
    """Whether bfloat16 arithmetic pays: GPUs since Ampere, CPUs with AMX or AVX-512 BF16.

    Elsewhere it is emulated and several times slower than float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def input_device(model: Any) -> torch.device:
    """Where a transformers model's inputs go: where its embeddings are computed.

    The weights of an offloaded model lie nowhere (meta) until their turn comes; accelerate's hooks know where that is.
    """
    embeddings = model.get_input_embeddings()
    for module in (embeddings, model):
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return embeddings.weight.device
