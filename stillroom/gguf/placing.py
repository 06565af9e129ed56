"""How many layers of a model file fit on a card."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import gguf

from stillroom.contracts.memory import CARD_RESERVE

_CACHE_BYTES = 2
"""A key or value in float16, llama.cpp's default."""


def layers_that_fit(file: str | Path, vram: int, *, context: int) -> int:
    """What llama-server's `-ngl` may be: layers on the card, counting the output as the last of them.

    Args:
        file: the .gguf file; weights stay on disk.
        vram: bytes of the card that are free.
        context: tokens whose keys and values are held.

    Returns:
        0 to layers + 1; the whole model where it fits. Layers go to the card from the last one down, after the output.
    """
    reader = gguf.GGUFReader(Path(file))
    sizes: Counter[int] = Counter()
    output = embedding = 0
    for tensor in reader.tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        if block:
            sizes[int(block[1])] += int(tensor.n_bytes)
        elif tensor.name == "token_embd.weight":
            embedding = int(tensor.n_bytes)
        else:
            output += int(tensor.n_bytes)
    if not any(tensor.name == "output.weight" for tensor in reader.tensors):
        output += (
            embedding  # tied: the head on the card is a copy of the embedding, which stays with the processor
        )
    left = vram - CARD_RESERVE
    fitting = 0
    cache = _cache(reader, context)
    for size in (output, *(sizes[block] + cache for block in sorted(sizes, reverse=True))):
        left -= size
        if left < 0:
            break
        fitting += 1
    return fitting


def _cache(reader: gguf.GGUFReader, context: int) -> int:
    """Bytes of one layer's keys and values, of the widest layer where they differ."""

    def value(name: str) -> int:
        field = reader.get_field(f"{architecture}.attention.{name}")
        found = 0 if field is None else field.contents()
        return max(found) if isinstance(found, list) else int(found)

    field = reader.get_field("general.architecture")
    architecture = field.contents() if field else ""
    return context * value("head_count_kv") * (value("key_length") + value("value_length")) * _CACHE_BYTES
