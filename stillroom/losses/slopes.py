"""Values of divergences between dense logits together with their gradients by the student's logits."""

from __future__ import annotations

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
    """The usual loss in few passes, its gradient being T (q - p).

    With x and z the logits over T, less the largest of each row, log p - log q = z - x + log max p - log max q.
    """
    student, teacher = aligned(student, teacher)
    wide = torch.promote_types(student.dtype, teacher.dtype)
    x, z = (_below_zero(side.to(wide), temperature) for side in (student, teacher))
    q, p = x.softmax(-1), z.softmax(-1)
    gap = z.sub_(x).add_(p.amax(-1, keepdim=True).log() - q.amax(-1, keepdim=True).log())
    gap.nan_to_num_(nan=0.0, neginf=0.0)  # forbidden by the teacher, by both: p is zero, and so is the term
    values = torch.linalg.vecdot(p, gap)
    slope = q.sub_(p)
    if temperature != 1.0:
        values, slope = values.mul_(temperature**2), slope.mul_(temperature)
    return values, slope


def _below_zero(logits: Tensor, temperature: float) -> Tensor:
    """A copy of the logits over T, the largest of each row being zero."""
    if temperature != 1.0:
        logits = logits / temperature
    return logits - logits.amax(-1, keepdim=True)
