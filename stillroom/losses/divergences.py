"""Divergences between two whole distributions: p, the teacher's, and q, the student's.

All of them take logits `[..., vocab]` of any floating dtype and return `[...]`, one value a token, in at
least fp32. Both sides are divided by the temperature T, and the value is multiplied by T squared (Hinton,
Vinyals and Dean 2015), so that value and gradient both keep their size when T changes. Equal distributions
give zero.

Vocabularies of two widths are taken to differ by padding columns at the end. Columns that only the teacher
has are cut off; columns that only the student has count as forbidden by the teacher (logit minus infinity):
either way the padding gets none of the teacher's mass. Minus infinity is welcome anywhere in the teacher's
logits. Reverse KL is infinite where q has mass and p has none, so there the student is compared within the
teacher's support.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) = sum p (log p - log q), times T squared: the student must cover what the teacher says.

    Args:
        student_logits: `[..., student vocab]`.
        teacher_logits: `[..., teacher vocab]`, the same leading shape.
        temperature: T > 0, applied to both.

    Raises:
        ValueError: the shapes do not fit, or T is not positive.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(log_p, log_q)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) within the teacher's support, times T squared: the student must not say what p does not.

    MiniLLM (Gu et al. 2023). Arguments and errors as in `forward_kl`.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature, within_support=True)
    return temperature**2 * _kl(log_q, log_p)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    Agarwal et al. 2023 (GKD), whose convention at the ends is kept: beta 0 is forward KL, beta 1 reverse KL
    (both are the limits of the formula divided by beta and by 1 - beta). Otherwise as `forward_kl`.

    Raises:
        ValueError: as in `forward_kl`, or beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if beta == 0:
        return forward_kl(student_logits, teacher_logits, temperature)
    if beta == 1:
        return reverse_kl(student_logits, teacher_logits, temperature)
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    log_m = _log_mix(log_p, log_q, beta)
    return temperature**2 * (beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m))


def skew_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), times T squared: forward KL with bounded gradients.

    Ko et al. 2024 (DistiLLM), whose default alpha is 0.1; alpha 0 is forward KL. Otherwise as `forward_kl`.

    Raises:
        ValueError: as in `forward_kl`, or alpha outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")
    if alpha == 0:
        return forward_kl(student_logits, teacher_logits, temperature)
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(log_p, _log_mix(log_p, log_q, alpha))


def total_variation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Half the sum of |p - q|, times T squared: at T = 1 the most mass that any event can differ by.

    Arguments and errors as in `forward_kl`.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32: float64 stays, halves go up."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is a positive, finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _log_probs(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, within_support: bool = False
) -> tuple[Tensor, Tensor]:
    """Both log-distributions at T over the student's columns, or over those that the teacher allows."""
    check_temperature(temperature)
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "must agree in every dimension but the last"
        )
    student, teacher = widened(student_logits), widened(teacher_logits)
    missing = student.shape[-1] - teacher.shape[-1]
    if missing > 0:
        teacher = torch.nn.functional.pad(teacher, (0, missing), value=-math.inf)
    elif missing < 0:
        teacher = teacher[..., : student.shape[-1]]
    if within_support:
        student = student.masked_fill(teacher == -math.inf, -math.inf)
    return (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum a (log a - log b), where a token without mass in a adds nothing, whatever b says of it."""
    nothing = log_a == -math.inf
    # Both factors are filled, not the product: 0 * inf is NaN in the value, and again in the gradient.
    return (log_a.exp() * (log_a.masked_fill(nothing, 0) - log_b.masked_fill(nothing, 0))).sum(-1)


def _log_mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q), with finite gradients where p is zero."""
    floor = torch.finfo(log_q.dtype).min
    return torch.logaddexp(log_p.clamp(min=floor) + math.log(share), log_q + math.log1p(-share))
