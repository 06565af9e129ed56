"""Models that people run at home, by their shapes, and cards that they run them on."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.contracts.errors import UserError
from stillroom.planning.sums import Shape

_LLAMA, _QWEN, _GEMMA = 128_256, 151_936, 262_144

MODELS = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49_152, True, 8_192),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 64, 49_152, True, 8_192),
    "SmolLM2-1.7B": Shape(24, 2048, 8192, 32, 32, 64, 49_152, True, 8_192),
    "SmolLM3-3B": Shape(36, 2048, 11_008, 16, 4, 128, _LLAMA, True, 65_536),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 64, _QWEN, True, 32_768),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 128, _QWEN, True, 32_768),
    "Qwen2.5-3B": Shape(36, 2048, 11_008, 16, 2, 128, _QWEN, True, 32_768),
    "Qwen2.5-7B": Shape(28, 3584, 18_944, 28, 4, 128, 152_064, False, 32_768),
    "Qwen2.5-14B": Shape(48, 5120, 13_824, 40, 8, 128, 152_064, False, 32_768),
    "Qwen2.5-32B": Shape(64, 5120, 27_648, 40, 8, 128, 152_064, False, 32_768),
    "Qwen2.5-72B": Shape(80, 8192, 29_568, 64, 8, 128, 152_064, False, 32_768),
    "Qwen3-0.6B": Shape(28, 1024, 3072, 16, 8, 128, _QWEN, True, 40_960),
    "Qwen3-1.7B": Shape(28, 2048, 6144, 16, 8, 128, _QWEN, True, 40_960),
    "Qwen3-4B": Shape(36, 2560, 9728, 32, 8, 128, _QWEN, True, 40_960),
    "Qwen3-8B": Shape(36, 4096, 12_288, 32, 8, 128, _QWEN, False, 40_960),
    "Qwen3-14B": Shape(40, 5120, 17_408, 40, 8, 128, _QWEN, False, 40_960),
    "Qwen3-32B": Shape(64, 5120, 25_600, 64, 8, 128, _QWEN, False, 40_960),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 64, _LLAMA, True, 131_072),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128, _LLAMA, True, 131_072),
    "Llama-3.1-8B": Shape(32, 4096, 14_336, 32, 8, 128, _LLAMA, False, 131_072),
    "Llama-3.3-70B": Shape(80, 8192, 28_672, 64, 8, 128, _LLAMA, False, 131_072),
    "Gemma-3-1B": Shape(26, 1152, 6912, 4, 1, 256, _GEMMA, True, 32_768, 512, 6),
    "Gemma-3-4B": Shape(34, 2560, 10_240, 8, 4, 256, 262_208, True, 131_072, 1024, 6),
    "Gemma-3-12B": Shape(48, 3840, 15_360, 16, 8, 256, 262_208, True, 131_072, 1024, 6),
    "Gemma-3-27B": Shape(62, 5376, 21_504, 32, 16, 128, 262_208, True, 131_072, 1024, 6),
    "Phi-3.5-mini": Shape(32, 3072, 8192, 32, 32, 96, 32_064, False, 131_072, fused=True),
    "Phi-4-mini": Shape(32, 3072, 8192, 24, 8, 128, 200_064, True, 131_072, fused=True),
    "Phi-4": Shape(40, 5120, 17_920, 40, 10, 128, 100_352, False, 16_384, fused=True),
}
"""As each model's config.json has them; of Gemma 3 the part that reads and writes text.

Compared with copies of config.json in public repositories: Llama-3.1-8B, Llama-3.2-3B, Qwen2.5-3B to 32B, Qwen3-4B to
32B, Gemma-3-27B, Phi-4. The others by their parameters alone, as their cards say them (tests/test_advice.py). Contexts of
Qwen2.5-7B and larger are those of the instructed models; the base models' are 131,072.
"""


@dataclass(frozen=True)
class Card:
    """A card, or a computer whose memory its graphics share: bytes, bytes a second, watts; its maker's figures."""

    memory: int
    bandwidth: float
    watts: float
    flops: float = 20e12
    """Operations a second that it really does in training; an assumption."""


CARDS = {
    "RTX 3060": Card(12 * 10**9, 360e9, 170),
    "RTX 3080": Card(10 * 10**9, 760e9, 320),
    "RTX 3090": Card(24 * 10**9, 936e9, 350),
    "RTX 4060": Card(8 * 10**9, 272e9, 115),
    "RTX 4060 Ti 16GB": Card(16 * 10**9, 288e9, 165),
    "RTX 4070": Card(12 * 10**9, 504e9, 200),
    "RTX 4080": Card(16 * 10**9, 717e9, 320),
    "RTX 4090": Card(24 * 10**9, 1008e9, 450),
    "RTX 5090": Card(32 * 10**9, 1792e9, 575),
    "L4": Card(24 * 10**9, 300e9, 72),
    "A100 80GB": Card(80 * 10**9, 2039e9, 400),
    "H100 80GB": Card(80 * 10**9, 3350e9, 700),
}
"""Bandwidths agree with public tables (dealers', the trade press's, other programs' tests; not the maker's own pages), and
so do the watts of RTX 3060, RTX 4080, RTX 4090, L4 and A100; the other watts are from memory."""


def card_of(name: str) -> Card:
    """The card that is called so, whatever its case; UserError where none is."""
    found = {known.lower(): card for known, card in CARDS.items()}.get(name.lower().strip())
    if found is None:
        raise UserError(
            "this card is not in the table",
            got=name,
            expected=", ".join(CARDS),
            do="give its memory and memory bandwidth: --vram 16GB --bandwidth 500GB",
        )
    return found
