"""Matching where tokens look: attention maps, and the relations among queries, keys or values.

A map is `[rows, heads, len, len]`: at length 2048 and 32 heads, 512 MiB a row in fp32, for the student and
again for the teacher. Match a few layers, not all.

Maps are computed here, from queries and keys, under a mask that is written down. Asking a model for them is
a trap: an eager attention module called within an SDPA model gets no mask at all and sees the future.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.losses.divergences import widened
from stillroom.losses.logspace import kl, log_sum


def attention_maps(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Log attention maps, `[rows, heads, len, len]`, in at least fp32: log softmax(scale * query key^T).

    `.exp()` gives the maps. Pairs that may not see each other are minus infinity, and so is the whole line of
    a query that is padding: it has no map.

    Args:
        query: `[rows, heads, len, dim]`, after the rotary embedding; see `capture_attention`.
        key: `[rows, key heads, len, dim]`; key heads divide heads (grouped-query attention).
        mask: bool: `[rows, len]`, True at real tokens, padding on either side or within; or `[rows, len, len]`,
            True where the query (first) may see the key (packed documents); None where every token is real.
        causal: whether a query sees only itself and what stands before it.
        scale: default 1 / sqrt(dim).

    Raises:
        ValueError: shapes that do not fit.
    """
    if query.dim() != 4 or key.dim() != 4 or query.shape[1] % key.shape[1]:
        raise ValueError(
            "query and key must be [rows, heads, len, dim] with a multiple of the key heads, got"
            f" {tuple(query.shape)} and {tuple(key.shape)}"
        )
    rows, _, length, dim = query.shape
    if key.shape != (rows, key.shape[1], length, dim):
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} differ in more than heads")
    allowed = _allowed(mask, rows, length, causal, query.device)
    if mask is not None:  # what stands at padding, NaN included, must not reach a gradient
        unused = ~(allowed.any(-1) | allowed.any(-2)).unsqueeze(-1)
        query, key = query.masked_fill(unused, 0), key.masked_fill(unused, 0)
    grouped = widened(query).unflatten(1, (key.shape[1], -1))
    with torch.autocast(query.device.type, enabled=False):  # no half rounds the scores before the softmax
        scores = (grouped @ widened(key)[:, :, None].transpose(-1, -2)).flatten(1, 2)
    scores = scores * (dim**-0.5 if scale is None else scale)
    blind = ~allowed.any(-1, keepdim=True)
    logs = scores.masked_fill(~(allowed | blind), -math.inf).log_softmax(-1)
    return logs.masked_fill(~allowed, -math.inf)


def _allowed(mask: Tensor | None, rows: int, length: int, causal: bool, device: torch.device) -> Tensor:
    """Bool, broadcastable to `[rows, heads, len, len]`: which query may see which key."""
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed.tril()
    if mask is None:
        return allowed
    if mask.shape not in ((rows, length), (rows, length, length)):
        raise ValueError(
            f"the mask must be {(rows, length)} or {(rows, length, length)}, got {tuple(mask.shape)}"
        )
    real = mask.bool()
    pairs = real if real.dim() == 3 else real[:, :, None] & real[:, None, :]
    return allowed & pairs[:, None]


def attention_loss(student_maps: Tensor, teacher_maps: Tensor, *, kind: str = "kl") -> Tensor:
    """How differently the student looks: `[rows, len]`, one value a query token; 0 for a query without a map.

    Head is matched with head, and the values averaged, when both have as many heads; otherwise both maps are
    averaged over their heads first. "kl" is KL(teacher || student) over the keys (MobileBERT, Sun et al.
    2020; MiniLM, Wang et al. 2020); "mse" is the squared difference *summed* over the keys, so that padding
    cannot thin it out (TinyBERT, Jiao et al. 2020, takes the mean, of scores before the softmax).

    Args:
        student_maps: log maps `[rows, heads, len, len]`, from `attention_maps`.
        teacher_maps: log maps of the same rows and length, made under the same mask; no gradient reaches them.
        kind: "kl" or "mse".

    Raises:
        ValueError: rows or lengths differ, or an unknown kind.
    """
    if kind not in ("kl", "mse"):
        raise ValueError(f'kind must be "kl" or "mse", got {kind!r}')
    shapes = (student_maps.shape, teacher_maps.shape)
    if any(len(s) != 4 for s in shapes) or shapes[0][:1] + shapes[0][2:] != shapes[1][:1] + shapes[1][2:]:
        raise ValueError(
            "maps must be [rows, heads, len, len] and agree in all but heads, got"
            f" {tuple(shapes[0])} and {tuple(shapes[1])}"
        )
    student, teacher = student_maps, teacher_maps.detach()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = _mean_over_heads(student), _mean_over_heads(teacher)
    if kind == "kl":
        return kl(teacher, student).mean(1)
    return (student.exp() - teacher.exp()).square().sum(-1).mean(1)


def _mean_over_heads(maps: Tensor) -> Tensor:
    """The log of the mean map, with its heads dimension kept."""
    return (log_sum(maps.movedim(1, -1)) - math.log(maps.shape[1])).unsqueeze(1)


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    relation_heads: int,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """KL between relations softmax(x x^T / sqrt(d)) among one kind of vectors: `[rows, len]`, one value a token.

    MiniLM v2 (Wang et al. 2020): x are the queries, the keys or the values of one layer, one call for each.
    Both sides are split anew into `relation_heads` heads, so that neither head counts nor widths need agree;
    more heads say more. Averaged over relation heads.

    Args:
        student: `[rows, len, width]`, or `[rows, heads, len, dim]` as captured.
        teacher: likewise, the same rows and length; no gradient reaches it.
        relation_heads: must divide both widths.
        mask: as in `attention_maps`.
        causal: whether a token relates only to what stands before it; MiniLM's encoders relate to all.

    Raises:
        ValueError: shapes that do not fit, or a width that does not split.
    """
    maps = []
    for side, x in (("student", student), ("teacher", teacher.detach())):
        flat = x.transpose(1, 2).flatten(2) if x.dim() == 4 else x
        if flat.dim() != 3:
            raise ValueError(f"the {side} must be [rows, len, width], got {tuple(x.shape)}")
        if relation_heads < 1 or flat.shape[-1] % relation_heads:
            raise ValueError(
                f"the {side}'s width {flat.shape[-1]} does not split into {relation_heads} relation heads"
            )
        split = flat.unflatten(-1, (relation_heads, -1)).transpose(1, 2)
        maps.append(attention_maps(split, split, mask=mask, causal=causal))
    return attention_loss(maps[0], maps[1])
