"""Rows laid end to end without padding: positions start anew at each row, and attention stays within rows.

The models' own handling of packed rows builds a mask of the whole length squared, and on CPU pays for all of it. Here
every product of a layer runs over the tokens alone; only queries, keys and values are cut into rows, in groups of
like length, for plain causal attention (`scaled_dot_product_attention`, without any mask). So the cost of attention is
that of a padded batch, and nothing else is padded.

Shape legend: T tokens of all rows, H heads, D width of a head, R rows of a group, L its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "stillroom_sdpa"
_PADDED_AT_MOST = 1.25
"""Rows share a group while its slots are at most this times its tokens."""
_SHORT = 192
"""Up to here plain products beat the fused kernel on a CPU (its backward pass there takes twice the time at 100)."""


@dataclass(frozen=True)
class Group:
    """Rows that are attended to together: the tokens `start:stop`, in `rows` rows of `longest` slots.

    `slots` int64 [stop - start] says which of the rows * longest slots each token takes; None where every row fills
    its slots.
    """

    start: int
    stop: int
    rows: int
    longest: int
    slots: Tensor | None

    def cut(self, tensor: Tensor) -> Tensor:
        """`[1, H, T, D]` to `[R, H, L, D]`, with zeros where no token is."""
        piece = tensor[0, :, self.start : self.stop]
        if self.slots is not None:
            room = piece.new_zeros(piece.shape[0], self.rows * self.longest, piece.shape[2])
            piece = room.index_copy(1, self.slots, piece)
        return piece.unflatten(1, (self.rows, self.longest)).transpose(0, 1)

    def join(self, tensor: Tensor) -> Tensor:
        """`[R, H, L, D]` back to `[stop - start, H, D]`."""
        piece = tensor.permute(0, 2, 1, 3).flatten(0, 1)
        return piece if self.slots is None else piece.index_select(0, self.slots)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed batch begin and end, in groups of like length."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Layout:
        """The layout of rows of these lengths, in this order; groups are few where lengths ascend."""
        groups: list[Group] = []
        taken: list[int] = []
        start = 0
        for length in lengths:
            more = [*taken, length]
            if taken and len(more) * max(more) > _PADDED_AT_MOST * sum(more):
                groups.append(_group(taken, start))
                start, more = groups[-1].stop, [length]
            taken = more
        if taken:
            groups.append(_group(taken, start))
        return cls(tuple(groups))

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return Layout(
            tuple(
                Group(g.start, g.stop, g.rows, g.longest, None if g.slots is None else g.slots.to(device))
                for g in self.groups
            )
        )


def _group(lengths: Sequence[int], start: int) -> Group:
    longest, tokens = max(lengths), sum(lengths)
    slots = None
    if tokens < longest * len(lengths):
        slots = torch.cat([torch.arange(n) + row * longest for row, n in enumerate(lengths)])
    return Group(start, start + tokens, len(lengths), longest, slots)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' models call: within rows where a layout is given, else as `sdpa`.

    Args:
        module: the attention layer.
        query: `[1, H, T, D]`; key and value may have fewer heads.
        attention_mask: not read where a layout is given.
        packed_layout: where rows begin and end.
        dropout: of attention weights.
        scaling: of the products; default 1 / sqrt(D).
        sliding_window: how many tokens back, its own included, a token sees.

    Returns:
        `[1, T, H, D]`, and no attention weights.
    """
    if packed_layout is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    pieces = []
    for group in packed_layout.groups:
        windowed = sliding_window is not None and group.longest > sliding_window
        plain = query.device.type == "cpu" and group.longest <= _SHORT
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            out = F.scaled_dot_product_attention(
                group.cut(query),
                group.cut(key),
                group.cut(value),
                attn_mask=_window(group.longest, sliding_window, query.device) if windowed else None,
                is_causal=not windowed,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        pieces.append(group.join(out))
    return torch.cat(pieces)[None], None


def _window(length: int, window: int | None, device: torch.device) -> Tensor:
    """bool `[L, L]`: token i sees j when i - window < j <= i."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < (window or length))


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_arguments(positions: Tensor, layout: Layout) -> dict[str, Any]:
    """What a decoder's forward is given beside the ids, int64 `[1, T]`.

    A mask of four dimensions is taken as it is by transformers, so that none is made, and `attention` reads none.
    """
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions.device)
    return {"position_ids": positions, "attention_mask": unread, "packed_layout": layout}


def prepare_packing(decoder: Any) -> bool:
    """Give the model attention that can stay within rows; whether it could be given.

    Whether the model then honours it is another question, which only its answers tell: state-space and convolution
    layers, and attention that does not come through transformers' interface, see across rows.
    """
    config = getattr(decoder, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa" or getattr(config, "sub_configs", None):
        return False
    decoder.set_attn_implementation(NAME)
    return config is not None and config._attn_implementation == NAME


def undo_packing(decoder: Any) -> None:
    """The model's own attention again."""
    if getattr(getattr(decoder, "config", None), "_attn_implementation", None) == NAME:
        decoder.set_attn_implementation("sdpa")
