"""Values of divergences between dense logits together with their gradients by the student's logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.losses.divergences import aligned, forward_kl


def value_and_gradient(
    divergence: Callable[..., Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Values `[tokens]` of any divergence, detached, and their gradient `[tokens, vocab]`, both with T squared."""
    if divergence is forward_kl and gradient:
        return _forward_kl(student_logits, teacher_logits, temperature)
    with torch.set_grad_enabled(gradient):
        leaf = student_logits.detach().requires_grad_(gradient)
        values = divergence(leaf, teacher_logits, temperature=temperature)
        slope = torch.autograd.grad(values.sum(), leaf)[0] if gradient else None
    return values.detach(), slope


def _forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The usual loss in few passes, in place where nobody else looks, its gradient being T (q - p).

    With x and z the logits over T, less the largest of each row, log p - log q = z - x + log sum e^x - log sum e^z.
    """
    student, teacher = aligned(student, teacher)
    wide = torch.promote_types(student.dtype, teacher.dtype)
    x, z = (_below_zero(side.to(wide), temperature) for side in (student, teacher))
    q, p = x.exp(), z.exp()  # cheaper than softmax, which would look for the largest again
    mass_q, mass_p = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
    broken = (mass_q + mass_p).isnan().squeeze(1)
    slope = q.div_(mass_q).sub_(p.div_(mass_p))
    terms = z.sub_(x).add_(mass_q.log() - mass_p.log()).mul_(p)
    values = terms.sum(-1)
    # What the teacher gives no mass adds nothing, also where the student forbids it; what it gives mass may cost all.
    # A CPU is asked for free whether there is such a place; a GPU would have to wait for the answer.
    if not values.is_cpu or not values.isfinite().all():
        values = terms.nan_to_num_(nan=0.0, posinf=math.inf).sum(-1)
    if temperature != 1.0:
        values, slope = values.mul_(temperature**2), slope.mul_(temperature)
    return values.masked_fill_(broken, math.inf), slope


def _below_zero(logits: Tensor, temperature: float) -> Tensor:
    """A copy of the logits over T, the largest of each row being zero; one is NaN where there is no finite largest."""
    out = logits - logits.amax(-1, keepdim=True)
    return out if temperature == 1.0 else out.div_(temperature)
