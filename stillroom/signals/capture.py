"""From a teacher's distribution to the few tokens that are kept of it.

*head+draws*: the most probable tokens are kept exactly, and what is left is given to draws from the tail, so
that the estimate is unbiased with less variance than draws alone. The tail's draws are systematic: one random
offset, then steps of equal mass (Madow 1949). A token whose probability is at most a step is drawn at most
once, so no byte is spent on the same id twice, and the head is as short as makes that true of all others.
A confident token needs a head of one and a single draw; a flat one takes all that the budget allows.

*top-k*: the k most probable tokens and the mass of the others as one bucket. It is biased towards the head,
but all that an API's top_logprobs can give.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.losses.divergences import check_temperature
from stillroom.signals.codes import (
    COUNT_LIMIT,
    TAIL_LEVELS,
    Signals,
    fixed_bytes,
    id_bits,
    round_entropy,
    round_tail,
    round_weights,
    signals_of,
)
from stillroom.signals.counter import mix, uniform

KINDS = ("head+draws", "top-k")
# Elements of logits worked on at a time: on CPUs few enough that freed buffers are reused, not returned.
_BLOCK_CPU, _BLOCK = 1 << 21, 1 << 24
# Columns whose mass is summed together before a draw looks inside.
_RUN = 64
_BELOW_ONE = 1 - 2.0**-50


def capture(
    logits: Tensor, *, keys: Tensor, temperature: float = 1.0, budget: int = 36, kind: str = "head+draws"
) -> Signals:
    """Keep of each distribution what fits the budget.

    Args:
        logits: `[tokens, vocab]`, any floating dtype; minus infinity for tokens that cannot come. Columns
            that only pad the head should be cut off before.
        keys: int64 `[tokens]`: they seed the random numbers (see `token_keys`), so that a token's signal
            depends on its logits and key alone, not on batch, order or rank.
        temperature: T > 0 at which the student will be trained.
        budget: bytes a token on disk, everything included; never exceeded, and hardly used where the teacher
            is sure.
        kind: "head+draws" (unbiased) or "top-k" (with a bucket).

    Returns:
        Signals on the logits' device.

    Raises:
        ValueError: shapes, dtypes or kind do not fit, or a row of logits is no distribution.
        BookError: the budget does not hold a single token.
    """
    check_temperature(temperature)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if logits.dim() != 2 or keys.shape != logits.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(
            "logits must be [tokens, vocab] and keys int64 [tokens], "
            f"got {tuple(logits.shape)} and {keys.dtype} {tuple(keys.shape)}"
        )
    vocab = logits.shape[1]
    pick = _Draws(budget, vocab) if kind == "head+draws" else _TopK(budget, vocab)
    parts = []
    wide = torch.promote_types(logits.dtype, torch.float32)
    room: list[Tensor] = []  # for a block; fresh memory each time would be zeroed by the system each time
    for rows, seeds in _blocks(logits, keys):
        room = room or [torch.empty_like(rows, dtype=wide) for _ in range(2)]
        scaled, p = (part[: len(rows)] for part in room)
        torch.softmax(scaled.copy_(rows).div_(temperature), -1, out=p)
        if bool(p[:, 0].isnan().any()):  # it is so at once in a whole row
            raise ValueError(
                "a row of logits is no distribution: NaN, plus infinity, or minus infinity throughout"
            )
        parts.append(pick(scaled, p, seeds, temperature))
    return parts[0] if len(parts) == 1 else Signals.cat(parts)


def from_top_logprobs(ids: Tensor, logprobs: Tensor, *, keys: Tensor | None = None) -> Signals:
    """Signals from an API's `top_logprobs`: the listed tokens, and the mass of all others as a bucket. T is 1.

    Args:
        ids: int64 `[tokens, k]`, distinct within a row, in any order.
        logprobs: `[tokens, k]`, natural logarithms; minus infinity marks an absent entry.
        keys: int64 `[tokens]` for the rounding of weights; by default a hash of the ids.

    Raises:
        ValueError: shapes do not fit, more than 255 entries, or probabilities that sum to more than one.
    """
    if ids.dim() != 2 or ids.shape != logprobs.shape or ids.shape[1] > COUNT_LIMIT:
        raise ValueError(
            f"ids and logprobs must both be [tokens, k] with k at most {COUNT_LIMIT}, "
            f"got {tuple(ids.shape)} and {tuple(logprobs.shape)}"
        )
    if keys is None:
        keys = ids.new_zeros(ids.shape[0])
        for column in ids.unbind(1):
            keys = mix(keys + column)
    probs, order = logprobs.double().exp().sort(stable=True, dim=-1, descending=True)
    total = probs.sum(-1)
    if bool((~(total <= 1.001)).any()):
        raise ValueError(
            f"probabilities sum to {float(total.max()):.4f}: these are not natural log-probabilities"
        )
    # What rounding of the printed logarithms lifts above one is taken back.
    return _bucketed(probs / total.clamp(min=1)[:, None], ids.gather(1, order), keys, 1.0)


class _Draws:
    """Exact head, systematic draws from the tail."""

    def __init__(self, budget: int, vocab: int) -> None:
        bits = id_bits(vocab)
        room = 8 * (budget - fixed_bytes(bucket=False))
        # Draws that fit beside a head of h tokens: the head's ids, its codes but the first, the tail's mass.
        fits = [(room - h * bits - (8 * (h - 1) + 16 if h else 0)) // bits for h in range(COUNT_LIMIT + 1)]
        self.allowed = [min(n, COUNT_LIMIT) for n in fits if n >= 1][: vocab + 1]
        if not self.allowed:
            raise BookError(
                "the budget of bytes a token does not hold a single token",
                got=f"{budget} bytes",
                expected=f"at least {fixed_bytes(bucket=False) + -(-bits // 8)} for {vocab} tokens",
                do="raise teach.signal.bytes_per_token",
            )
        # A tail gets a draw for each such share of the whole mass: four times finer than the budget would
        # draw a flat distribution, so that a confident token's small tail does not fill it.
        self.grain = 1 / (4 * self.allowed[0])

    def __call__(self, logits: Tensor, p: Tensor, keys: Tensor, temperature: float) -> Signals:
        """Signals of rows whose softmax is p, which is used up."""
        vocab, device = p.shape[1], p.device
        longest = len(self.allowed) - 1
        top, top_ids = _largest(p, min(longest + 1, vocab))
        # log p = logits - logsumexp, and that follows from any token's two numbers.
        entropy = logits.gather(1, top_ids[:, :1]).squeeze(1) - top[:, 0].log() - _expected(logits, p)
        heads, tail = self._heads(top.double(), vocab)
        tail_codes = torch.where(heads > 0, round_tail(tail, uniform(keys, 1)), 0)

        columns = torch.arange(top.shape[1], device=device)
        in_head = columns < heads[:, None]
        codes = round_weights(top.double(), uniform(keys[:, None], 2 + columns)) * (in_head & (columns > 0))
        p.scatter_(1, top_ids, torch.where(in_head, 0.0, top))
        draws = self._draws(tail, heads) * ((heads == 0) | (tail_codes > 0)) * (p.amax(-1) > 0)
        drawn = _systematic(p, draws, uniform(keys, 0), self.allowed[0])
        steps = torch.arange(self.allowed[0], device=device)
        keep = torch.cat([in_head, steps < draws[:, None]], 1)
        return signals_of(
            ids=torch.cat([top_ids, drawn], 1)[keep],
            heads=heads,
            counts=heads + draws,
            codes=torch.cat([codes, torch.zeros_like(drawn, dtype=torch.uint8)], 1)[keep],
            tail_codes=tail_codes * (draws > 0),
            entropy_codes=round_entropy(entropy),
            bucket=False,
            temperature=temperature,
        )

    def _heads(self, top: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """The shortest head such that no other token exceeds a draw's weight, and the mass that it leaves."""
        longest = len(self.allowed) - 1
        left = (1 - torch.nn.functional.pad(top.cumsum(-1), (1, 0))).clamp(min=0)[:, : longest + 1]
        lengths = torch.arange(left.shape[1], device=top.device).expand_as(left)
        following = torch.nn.functional.pad(top, (0, 1))[:, : left.shape[1]]
        # A mass that the tail's code cannot hold (or fp32 rounded away) is not worth a longer head.
        enough = following * self._draws(left, lengths) <= left.clamp(min=0.25 / TAIL_LEVELS)
        enough[:, -1] = True
        heads = enough.to(torch.uint8).argmax(-1)
        left = left.gather(1, heads[:, None]).squeeze(1)
        return heads, torch.where(heads == vocab, 0.0, left)

    def _draws(self, tail: Tensor, heads: Tensor) -> Tensor:
        """How many draws a tail of this mass gets beside a head of this length."""
        allowed = torch.tensor(self.allowed, device=tail.device)[heads]
        return torch.minimum((tail / self.grain).ceil().long().clamp(min=1), allowed)


class _TopK:
    """The k most probable tokens that fit the budget, and a bucket."""

    def __init__(self, budget: int, vocab: int) -> None:
        self.k = entries_within(budget, vocab)

    def __call__(self, logits: Tensor, p: Tensor, keys: Tensor, temperature: float) -> Signals:
        top, ids = _largest(p, self.k)
        probs = top.double()
        if self.k == p.shape[1]:
            probs /= probs.sum(-1, keepdim=True)  # no token is left to hold what fp32 rounded away
        return _bucketed(probs, ids, keys, temperature)


def entries_within(budget: int, vocab: int) -> int:
    """How many tokens a top-k signal of at most so many bytes lists.

    Raises:
        BookError: not one.
    """
    bits = id_bits(vocab)
    room = 8 * (budget - fixed_bytes(bucket=True)) - 16 + 8
    entries = min(room // (bits + 8), COUNT_LIMIT, vocab)
    if entries < 1:
        raise BookError(
            "the budget of bytes a token does not hold a single token",
            got=f"{budget} bytes",
            expected=f"at least {fixed_bytes(bucket=True) + 2 + -(-bits // 8)} for {vocab} tokens",
            do="raise teach.signal.bytes_per_token",
        )
    return entries


def _bucketed(probs: Tensor, ids: Tensor, keys: Tensor, temperature: float) -> Signals:
    """Signals of `[tokens, k]` probabilities in falling order; what they leave is the bucket."""
    tail = (1 - probs.sum(-1)).clamp(min=0)
    tail = torch.where(tail < 1e-12, 0.0, tail)
    columns = torch.arange(probs.shape[1], device=probs.device)
    present = probs > 0
    codes = round_weights(probs, uniform(keys[:, None], 2 + columns)) * (columns > 0)
    return signals_of(
        ids=ids[present],
        heads=present.sum(-1),
        counts=present.sum(-1),
        codes=codes[present],
        tail_codes=round_tail(tail, uniform(keys, 1)),
        entropy_codes=round_entropy(torch.special.entr(probs).sum(-1) + torch.special.entr(tail)),
        bucket=True,
        temperature=temperature,
    )


def _largest(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, `[tokens, k]`, in falling order.

    They lie in the k runs whose own largest are largest, which leaves few to be sorted.
    """
    whole = p.shape[1] // _RUN * _RUN
    if k * _RUN >= whole // 2:
        return p.topk(k, sorted=True)
    runs = p[:, :whole].unflatten(1, (-1, _RUN)).amax(-1).topk(k, sorted=False).indices
    columns = (runs[..., None] * _RUN + torch.arange(_RUN, device=p.device)).flatten(1)
    behind = torch.arange(whole, p.shape[1], device=p.device).expand(p.shape[0], -1)
    columns = torch.cat([columns, behind], 1)
    top, places = p.gather(1, columns).topk(k, sorted=True)
    return top, columns.gather(1, places)


def _expected(logits: Tensor, p: Tensor) -> Tensor:
    """The mean logit `[tokens]`, tokens that cannot come left out."""
    # A CPU has no dot product of rows that does not write all products first.
    mean = torch.bmm(p[:, None], logits[..., None]).flatten() if p.is_cpu else torch.linalg.vecdot(p, logits)
    lost = mean.isnan()  # 0 * -inf is no number
    if bool(lost.any()):
        mean[lost] = torch.linalg.vecdot(p[lost], logits[lost].masked_fill(p[lost] == 0, 0))
    return mean


def _systematic(p: Tensor, draws: Tensor, offset: Tensor, most: int) -> Tensor:
    """Draw from unnormalised p `[tokens, vocab]` at equal steps of mass: ids in rising order, `[tokens, most]`.

    The first `draws` columns of a row hold; each token comes p / step times on average, rounded up or down.
    Mass is summed over runs of columns first, so that only a few runs are walked through, in float64.
    """
    whole = p.shape[1] // _RUN * _RUN
    sums = p[:, :whole].unflatten(1, (-1, _RUN)).sum(-1)
    if whole < p.shape[1]:
        sums = torch.cat([sums, p[:, whole:].sum(-1, keepdim=True)], 1)
    ends = sums.double().cumsum(-1)
    at = (torch.arange(most, device=p.device) + offset[:, None]) / draws.clamp(min=1)[:, None]
    # Below one, or rounding could step past the last token that has mass; here and within the run.
    at = at.clamp(max=_BELOW_ONE) * ends[:, -1:]
    run = torch.searchsorted(ends, at, right=True).clamp(max=sums.shape[1] - 1)
    columns = run[..., None] * _RUN + torch.arange(_RUN, device=p.device)
    held = p.gather(1, columns.clamp(max=p.shape[1] - 1).flatten(1)).view(columns.shape)
    inside = held.masked_fill(columns >= p.shape[1], 0).double().cumsum(-1)
    rest = at - torch.nn.functional.pad(ends, (1, 0)).gather(1, run)
    rest = torch.minimum(rest, inside[..., -1] * _BELOW_ONE).clamp(min=0)
    place = torch.searchsorted(inside, rest[..., None], right=True).squeeze(-1)
    return (run * _RUN + place).clamp(max=p.shape[1] - 1)


def _blocks(logits: Tensor, keys: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    block = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK
    # A row takes its vocabulary, or the runs that its draws look into, whichever is more.
    rows = max(1, block // max(logits.shape[1], COUNT_LIMIT * _RUN))
    return zip(logits.split(rows), keys.split(rows), strict=True)
