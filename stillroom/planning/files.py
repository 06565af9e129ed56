"""How large a student's model files will be, from its shape and the rules of each kind. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from stillroom.planning.sums import Shape
from stillroom.quants.mixes import Network, plan_mix

_TOKEN_BYTES = 37
"""Of the file's vocabulary a token: its length (8), text (about 7) and type (4), and the merge that makes it (about 18)."""


def file_bytes(shape: Shape, kind: str) -> int:
    """Bytes of a GGUF file, about: its tensors to the byte, its vocabulary by the number of tokens.

    Args:
        shape: the model's.
        kind: a name in `MIXES`, such as Q4_K_M.

    Raises:
        ModelError: there is no such kind.
    """
    network = Network(
        shape.layers,
        shape.heads // shape.kv_heads,
        of_70b=shape.layers == 80 and shape.heads != shape.kv_heads,
    )
    return sum(row.bytes for row in plan_mix(_tensors(shape), kind, network)) + _TOKEN_BYTES * shape.vocab


def embedding_bytes(shape: Shape, kind: str) -> int:
    """Bytes of a table of tokens of which one row is read for each, and none where it is the output's too."""
    if shape.tied:
        return 0
    rows = plan_mix(_tensors(shape), kind, Network(shape.layers, 1))
    return next(row.bytes for row in rows if row.tensor == "token_embd.weight")


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the file's tensors, as llama.cpp has them."""
    wide = shape.hidden
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield "token_embd.weight", (shape.vocab, wide)
    if not shape.tied:
        yield "output.weight", (shape.vocab, wide)
    yield "output_norm.weight", (wide,)
    for layer in range(shape.layers):
        if shape.fused:
            yield f"blk.{layer}.attn_qkv.weight", (queries + 2 * keys, wide)
            yield f"blk.{layer}.ffn_up.weight", (2 * shape.mlp, wide)
        else:
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                yield f"blk.{layer}.attn_{name}.weight", (rows, wide)
            yield f"blk.{layer}.ffn_gate.weight", (shape.mlp, wide)
            yield f"blk.{layer}.ffn_up.weight", (shape.mlp, wide)
        yield f"blk.{layer}.attn_output.weight", (wide, queries)
        yield f"blk.{layer}.ffn_down.weight", (wide, shape.mlp)
        yield f"blk.{layer}.attn_norm.weight", (wide,)
        yield f"blk.{layer}.ffn_norm.weight", (wide,)
