"""Reverse and skew reverse KL against a teacher that scored only tokens of the student's choice.

On text that the student wrote the teacher need not hand over distributions: reverse KL weighs every token by the
student's probability, so the teacher's word on the student's likeliest tokens is nearly all of it, and its word
on the one token drawn is all of it on average.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.losses.divergences import SKEW, check_skew
from stillroom.losses.fits import check_distinct, check_fit, check_ids
from stillroom.losses.logspace import exact
from stillroom.losses.scores import ScoredTokens
from stillroom.losses.sparse import differentiable


def scored_reverse_kl(student_logits: Tensor, targets: ScoredTokens, temperature: float = 1.0) -> Tensor:
    """KL(q || p) times T squared, one value a token, in at least fp32.

    On top-k and bucket it is the KL between the distributions over scored tokens and "any other": never more
    than the dense one, equal to it when every token is scored. As there, the student is compared within the
    teacher's support; the columns that only pad its head are out of that where the targets tell the teacher's
    vocabulary, and part of "any other" where they do not.

    On sampled tokens the value is log q(y) - log p(y) and the gradient that factor, held fixed, times that of
    log q(y) (the policy gradient of reverse KL). For y drawn from this very student at this T, both are those of
    the dense reverse KL on average over y. Differentiating the value itself would not do: the mean of that
    gradient is zero. A student trained on after it wrote the text is no longer the one that drew: write anew.

    Args:
        student_logits: `[tokens, vocab]`; a row that is no distribution has the value infinity and no gradient.
        targets: scored at the same temperature.
        temperature: T > 0.

    Raises:
        ValueError: shapes, ids, temperature or log-probabilities do not fit; or a sampled token that the
            teacher forbids, since what is left of reverse KL then depends on the tokens not sampled.
    """
    return scored_skew_reverse_kl(student_logits, targets, temperature, alpha=0.0)


def scored_skew_reverse_kl(
    student_logits: Tensor, targets: ScoredTokens, temperature: float = 1.0, alpha: float = SKEW
) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p) times T squared; as `scored_reverse_kl`, which it is at alpha 0.

    Tokens that the teacher forbids cost the student q log(1 / alpha), sampled or not (DistiLLM-2, Ko et al. 2025).

    Raises:
        ValueError: as in `scored_reverse_kl`, or alpha outside [0, 1).
    """
    check_skew(alpha)
    check_fit(targets, student_logits.shape, temperature, "scored")
    check_scores(targets, student_logits.shape[1], alpha)
    return differentiable(student_logits, value_and_gradient, targets, temperature, alpha)


def check_scores(targets: ScoredTokens, columns: int, alpha: float) -> None:
    """Raise ValueError unless every position holds different ids and what can be log-probabilities of them."""
    if not targets.tokens:
        return
    check_ids(targets.ids, columns)
    check_distinct(targets.ids)
    if (
        targets.vocab is not None
        and (targets.teacher_logprobs[targets.ids >= targets.vocab] > -math.inf).any()
    ):
        raise ValueError(
            f"a token beyond the teacher's vocabulary of {targets.vocab} must have log-probability -inf"
        )
    most = float(exact(targets.teacher_logprobs).exp().sum(-1).max())
    if not most <= 1.01:  # what log-probabilities in bf16 may sum to
        raise ValueError(f"the teacher's probabilities of a position sum to {most}: not log-probabilities")
    if targets.sampled and alpha == 0 and (targets.teacher_logprobs == -math.inf).any():
        raise ValueError(
            "reverse KL has no unbiased estimate from a sampled token that the teacher forbids: its "
            "log-probability is -inf; use skew_reverse_kl or score the student's top-k"
        )


def value_and_gradient(
    logits: Tensor, targets: ScoredTokens, temperature: float, alpha: float, *, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Values `[tokens]` and their gradient `[tokens, vocab]` by the logits, both with T squared.

    With x = logits / T and m = alpha q + (1 - alpha) p over the outcomes c (scored tokens and bucket), the
    derivative by log q_c is q_c h_c with h_c = log(q_c / m_c) - alpha q_c / m_c, but for a constant, and the
    gradient by x_j is q_j (h_c(j) - sum q_c h_c). All columns of padding are one more outcome, with p = 0.
    """
    x = logits / temperature
    width = x.shape[1]
    vocab = width if targets.vocab is None else min(width, targets.vocab)
    if alpha == 0:
        x[:, vocab:] = -math.inf  # within the teacher's support
    ids, log_p = targets.ids, targets.teacher_logprobs.to(x.dtype)
    kept = x.gather(1, ids)
    if targets.sampled:
        whole = torch.logsumexp(x, -1, keepdim=True)
        ratio, h = _ratio(kept - whole, log_p, alpha)
        values, at_ids, elsewhere = ratio.squeeze(1), h, -h
    else:
        if alpha == 0:
            kept = kept.masked_fill(log_p == -math.inf, -math.inf)
        others = x.scatter(1, ids, -math.inf).split([vocab, width - vocab], 1)
        outside, padding = (torch.logsumexp(some, -1, keepdim=True) for some in others)
        outcomes = torch.cat([kept, outside, padding], 1)
        whole = torch.logsumexp(outcomes, -1, keepdim=True)
        nowhere = whole == -math.inf  # every token that the student allows is scored, and forbidden
        whole = whole.masked_fill(nowhere, 0)
        log_q = outcomes - whole
        tail = targets.log_tail()[:, None].to(x.dtype)
        ratio, h = _ratio(log_q, torch.cat([log_p, tail, torch.full_like(tail, -math.inf)], 1), alpha)
        q = log_q.exp()
        values = (q * ratio).sum(-1).masked_fill(nowhere.squeeze(1), math.inf)
        centred = h - (q * h).sum(-1, keepdim=True)
        at_ids, elsewhere, at_padding = (q * centred)[:, :-2], centred[:, -2:-1], centred[:, -1:]
    values = temperature**2 * values
    if not gradient:
        return values, None
    slope = x.sub_(whole).exp_()
    if targets.sampled:
        slope.mul_(elsewhere).scatter_add_(1, ids, at_ids)
    else:
        slope[:, :vocab].mul_(elsewhere)
        slope[:, vocab:].mul_(at_padding)
        slope.scatter_(1, ids, at_ids)
    return values, slope.mul_(temperature)


def _ratio(log_q: Tensor, log_p: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """log(q / m) and h of `value_and_gradient`; zero where q is, whatever m."""
    log_m = log_p
    if alpha > 0:
        log_m = torch.logaddexp(log_q + math.log(alpha), log_p + math.log1p(-alpha))
    ratio = (log_q - log_m).masked_fill(log_q == -math.inf, 0)
    return ratio, ratio - alpha * ratio.exp() if alpha > 0 else ratio
