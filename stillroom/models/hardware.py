"""What the hardware is quick at."""

from __future__ import annotations

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
