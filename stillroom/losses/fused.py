"""Distillation loss straight from hidden states, without ever holding all the logits.

The head is applied to `chunk_tokens` positions at a time, and the gradient by hidden states and head is
taken in the same pass (as in Liger Kernel's fused linear losses; Hsu et al. 2024), so that the memory for
logits is at most that of two chunks in fp32, however long the batch. That is why weights come in, and not a
reduction after: the head's gradient is a sum over tokens and cannot be reweighted later.

A chunk's products are taken at once; what is computed from the logits is computed for a few rows at a time, and
the gradient by the products takes their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillroom.losses.divergences import widened
from stillroom.losses.heads import Head, HeadGradients, LoRA, check_head
from stillroom.losses.logspace import no_distribution
from stillroom.losses.products import operand, scaled
from stillroom.losses.sharded import check_positions, whole, whole_head
from stillroom.losses.terms import Divergence, Teacher, Terms

# Elements of logits that are worked on at a time. A CPU keeps so few in its cache, which makes the many passes over
# them several times faster than over a whole chunk; other devices want more at once.
_STRIP = {"cpu": 1 << 20}
_WIDE_STRIP = 1 << 24


@dataclass(frozen=True)
class FusedLoss:
    """What `fused_linear_divergence` returns.

    Args:
        loss: scalar with gradients: the sum of weights times values.
        values: `[tokens]`, detached, unweighted: soft * soft_values + hard * hard_values; 0 at weight 0.
        soft_values: `[tokens]`, detached: the divergence, with T squared; 0 where soft is 0.
        hard_values: `[tokens]`, detached: the labels' cross-entropy at T = 1; 0 where hard is 0. Where the student's
            own logits are no distribution the values are infinite; then its gradients may hold NaN.
    """

    loss: Tensor
    values: Tensor
    soft_values: Tensor
    hard_values: Tensor


def fused_linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Teacher | None,
    *,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    hard: float = 0.0,
    soft: float = 1.0,
    divergence: str | Divergence = "forward_kl",
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int = 256,
    student_lora: LoRA | None = None,
) -> FusedLoss:
    """The weighted sum over tokens of soft * divergence + hard * cross-entropy, chunk by chunk.

    Sums are kept in at least fp32, and in fp16 the common scale of the weights is applied last, so that nothing
    underflows. Positions of weight 0 never reach the head. The teacher gets no gradient.

    Weights, biases and adapters of student and teacher may be DTensors, as `fully_shard` leaves them outside
    the forward pass of the module it wraps. They are gathered for the pass, by all ranks together, and their
    gradients come back sharded and averaged over the ranks, as those of all other parameters under DDP and
    `fully_shard`. So on N averaging ranks, weights of N / selected tokens of the whole step give the gradients
    of one process.

    Args:
        student_hidden: `[tokens, hidden]`, any floating dtype.
        student_weight: `[vocab, hidden]`; its gradient is not computed when it is frozen.
        teacher: TeacherHead or logits `[tokens, vocab]`; SparseTargets (forward KL; `renormalised_kl` for that
            kind); ScoredTokens (reverse and skew reverse KL); None where soft is 0. Its vocabulary may differ by
            padding columns at the end, see `stillroom.losses.divergences`.
        weights: `[tokens]`, what each value is multiplied by before summing (see `token_weights`); default
            1 / tokens.
        labels: int64 `[tokens]`, the tokens to predict; read where the weight is not 0.
        hard: factor of the labels' cross-entropy, taken at T = 1 and without T squared.
        soft: factor of the divergence, taken at T and with T squared.
        divergence: forward_kl, reverse_kl, jensen_shannon, skew_kl, skew_reverse_kl, alpha_beta,
            total_variation, renormalised_kl, or a function of (student logits, teacher logits, temperature=)
            that returns one value a token, such as `partial(skew_reverse_kl, alpha=0.3)`.
        temperature: T > 0 of the divergence.
        student_bias: `[vocab]` or None.
        logit_scale: what the head's output is multiplied by.
        softcap: cap c of `c * tanh(logits / c)` after scaling, or None.
        chunk_tokens: positions whose logits are held at a time.
        student_lora: (A `[rank, hidden]`, B `[vocab, rank]`, scale): an adapter on the head, never merged.

    Raises:
        ValueError: shapes or settings that do not fit, positions that are spread over ranks, a kind of targets
            that the divergence cannot be had from without bias, or a position of weight other than 0 at which
            what the teacher says is no distribution.
    """
    check_head("student", student_hidden, student_weight, student_bias, student_lora, softcap)
    tokens, vocab = student_hidden.shape[0], student_weight.shape[0]
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if weights is None:
        weights = torch.full((tokens,), 1 / max(tokens, 1), device=student_hidden.device)
    if weights.shape != (tokens,):
        raise ValueError(f"weights must have shape ({tokens},), got {tuple(weights.shape)}")
    terms = Terms(teacher, labels, hard, soft, divergence, temperature)
    terms.check(tokens, vocab)
    check_positions(student_hidden, teacher)
    if soft:
        terms = replace(terms, teacher=whole_head(teacher))
    lora_a, lora_b, lora_scale = student_lora if student_lora is not None else (None, None, 1.0)
    # Before anything that depends on which positions count: every rank must take part in the gathering.
    head = (None if p is None else whole(p) for p in (student_weight, student_bias, lora_a, lora_b))
    parameters = (student_hidden, *head)
    needed = [torch.is_grad_enabled() and p is not None and p.requires_grad for p in parameters]
    plan = _Plan(terms, weights.detach(), logit_scale, softcap, lora_scale, chunk_tokens, needed)
    loss, soft_values, hard_values = _Fused.apply(plan, *parameters)
    return FusedLoss(loss, soft * soft_values + hard * hard_values, soft_values, hard_values)


@dataclass(frozen=True)
class _Plan:
    """Everything of a call that autograd need not see."""

    terms: Terms
    weights: Tensor
    logit_scale: float
    softcap: float | None
    lora_scale: float
    chunk_tokens: int
    needed: list[bool]

    def head(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> Head:
        lora = (
            (operand(a, hidden), operand(b, hidden), self.lora_scale)
            if a is not None and b is not None
            else None
        )
        bias = None if bias is None else widened(bias)
        return Head(operand(weight, hidden), bias, self.logit_scale, self.softcap, lora)

    def run(self, head: Head, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, HeadGradients]:
        """Loss, soft values, hard values, a scale, and the gradients divided by that scale."""
        sums = HeadGradients(head, hidden, self.needed)
        gradient = any(self.needed) and bool(self.terms.soft or self.terms.hard)
        weights = self.weights.to(torch.promote_types(hidden.dtype, torch.float32))
        rows, vocab = weights.nonzero().squeeze(1), head.weight.shape[0]
        scale = weights.new_ones(())
        if head.weight.dtype == torch.float16 and rows.numel():  # the others have the exponents of fp32
            scale = weights.abs().max()
        # In the order of `rows`: what is written strip by strip lies side by side.
        soft, hard = (weights.new_zeros(len(rows)) for _ in range(2))
        broken, lost = (torch.zeros_like(soft, dtype=torch.bool) for _ in range(2))  # teacher, student
        shares, done = (weights[rows] / scale)[:, None], 0
        chunks = rows.split(self.chunk_tokens) if rows.numel() else ()
        strip = _STRIP.get(hidden.device.type, _WIDE_STRIP)
        step = math.ceil(
            strip / (2 if self.terms.dense else 1) / vocab
        )  # of a dense teacher's, as many again
        strips = self.terms.strips([strip for chunk in chunks for strip in chunk.split(step)], chunks, vocab)
        buffer = head.buffer(min(self.chunk_tokens, len(rows)))
        for chunk in chunks:
            states = operand(hidden[chunk], hidden)
            products = head.products(states, buffer)
            for some in products.split(step):
                logits, (teacher, labels) = head.logits(some), next(strips)
                here = slice(done, done := done + len(some))
                some_soft, some_hard, slope = self.terms.compare(logits, teacher, labels, gradient)
                soft[here], hard[here] = some_soft, some_hard
                if not self.terms.proves(some_soft):
                    lost[here] = no_distribution(logits).squeeze(1)
                    if isinstance(teacher, Tensor):
                        broken[here] = no_distribution(teacher[:, :vocab]).squeeze(1)
                if slope is not None:
                    slope = head.before_scaling(slope.mul_(shares[here]), logits)
                    sums.add_bias(slope)
                    some.copy_(slope)
            if gradient:
                sums.add(head, states, products, chunk)  # which now hold the gradient by themselves
        if broken.any():  # asked once, since a CUDA device would wait at each strip
            raise ValueError(
                f"the teacher's logits at position {int(rows[broken.nonzero()[0]])} are no distribution: they hold NaN or"
                " plus infinity, or nothing but minus infinity; give positions that do not count the weight 0"
            )
        soft, hard = (
            torch.zeros_like(weights).index_copy(
                0, rows, values.masked_fill(lost, math.inf) if factor else values
            )
            for values, factor in ((soft, self.terms.soft), (hard, self.terms.hard))
        )
        loss = ((self.terms.soft * soft + self.terms.hard * hard) * weights).sum()
        return loss, soft, hard, scale, sums


class _Fused(torch.autograd.Function):
    """Loss and token values; gradients are taken going forward and only scaled going back."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        ctx.dtypes = [None if p is None else p.dtype for p in parameters]
        hidden, weight, bias, a, b = parameters
        with torch.autocast(hidden.device.type, enabled=False):
            loss, soft, hard, scale, sums = plan.run(plan.head(hidden, weight, bias, a, b), hidden)
        ctx.save_for_backward(scale, *sums.all())
        ctx.mark_non_differentiable(soft, hard)
        return loss, soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale, *sums = ctx.saved_tensors
        return None, *(
            None if total is None else scaled(total, scale * grad, dtype)
            for total, dtype in zip(sums, ctx.dtypes, strict=True)
        )
