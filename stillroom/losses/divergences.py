"""Divergences between two whole distributions: p, the teacher's, and q, the student's.

All of them take logits `[..., vocab]` of any floating dtype and return `[...]`, one value a token, in at
least fp32. Both sides are divided by the temperature T, and the value is multiplied by T squared (Hinton,
Vinyals and Dean 2015), so that value and gradient both keep their size when T changes. Equal distributions
give zero.

Vocabularies of two widths are taken to differ by padding columns at the end. Columns that only the teacher
has are cut off; columns that only the student has count as forbidden by the teacher (logit minus infinity):
either way the padding gets none of the teacher's mass. Minus infinity is welcome anywhere in the teacher's
logits. Reverse KL (and alpha-beta at alpha 0) is infinite where q has mass and p has none, so there the
student is compared within the teacher's support. Where both heads are padded, cut the teacher's logits, or the
weight of its head, to the tokenizer's length.

A row that is no distribution on one of the sides (NaN, plus infinity, or nothing but minus infinity) has the value
infinity and gets no gradient: unselected places may hold anything, and at a selected one the fault shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.logspace import blanked, kl, no_distribution

SKEW = 0.1  # DistiLLM's


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) = sum p (log p - log q), times T squared: the student must cover what the teacher says.

    Args:
        student_logits: `[..., student vocab]`.
        teacher_logits: `[..., teacher vocab]`, the same leading shape.
        temperature: T > 0, applied to both.

    Raises:
        ValueError: the shapes do not fit, or T is not positive.
    """
    pair = _Pair.of(student_logits, teacher_logits, temperature)
    return pair.scaled(kl(pair.log_p, pair.log_q))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) within the teacher's support, times T squared: the student must not say what p does not.

    MiniLLM (Gu et al. 2023). Arguments and errors as in `forward_kl`.
    """
    pair = _Pair.of(student_logits, teacher_logits, temperature, within_support=True)
    return pair.scaled(kl(pair.log_q, pair.log_p))


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
    pair = _Pair.of(student_logits, teacher_logits, temperature)
    log_m = _log_mix(pair.log_p, pair.log_q, beta)
    return pair.scaled(beta * kl(pair.log_p, log_m) + (1 - beta) * kl(pair.log_q, log_m))


def skew_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, alpha: float = SKEW
) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), times T squared: forward KL with bounded gradients.

    Ko et al. 2024 (DistiLLM), whose default alpha is 0.1; alpha 0 is forward KL. Otherwise as `forward_kl`.

    Raises:
        ValueError: as in `forward_kl`, or alpha outside [0, 1).
    """
    check_skew(alpha)
    if alpha == 0:
        return forward_kl(student_logits, teacher_logits, temperature)
    pair = _Pair.of(student_logits, teacher_logits, temperature)
    return pair.scaled(kl(pair.log_p, _log_mix(pair.log_p, pair.log_q, alpha)))


def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, alpha: float = SKEW
) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p), times T squared: reverse KL with bounded gradients.

    Ko et al. 2025 (DistiLLM-2), for text that the student wrote. Tokens that the teacher forbids cost the
    student q log(1 / alpha), so there is no need to leave them out; alpha 0 is reverse KL, which does.
    Otherwise as `forward_kl`.

    Raises:
        ValueError: as in `forward_kl`, or alpha outside [0, 1).
    """
    check_skew(alpha)
    if alpha == 0:
        return reverse_kl(student_logits, teacher_logits, temperature)
    pair = _Pair.of(student_logits, teacher_logits, temperature)
    return pair.scaled(kl(pair.log_q, _log_mix(pair.log_q, pair.log_p, alpha)))


def alpha_beta(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Tensor:
    """Alpha-beta divergence, times T squared: forward KL at (1, 0), reverse KL at (0, 1), and the plane between.

    With s = alpha + beta,

        -1 / (alpha beta) * sum [p^alpha q^beta - alpha/s p^s - beta/s q^s]

    and, where one of them is zero, the limits

        1 / alpha^2 * sum [p^alpha log(p^alpha / q^alpha) - p^alpha + q^alpha]    beta 0
        1 / beta^2  * sum [q^beta  log(q^beta  / p^beta)  - q^beta  + p^beta ]    alpha 0.

    Wang et al. 2025 (ABKD), after Cichocki, Cruces and Amari 2011. A small beta concentrates less on what
    the student is sure of, a small alpha more on large errors; alpha = beta = 0.5 is four times the squared
    Hellinger distance. Negative exponents, and zero twice, are infinite wherever a probability is zero: they
    are refused. Arguments otherwise as in `forward_kl`.

    Raises:
        ValueError: as in `forward_kl`, or alpha or beta negative, or both zero.
    """
    total = alpha + beta
    if not (alpha >= 0 and beta >= 0 and 0 < total < math.inf):
        raise ValueError(f"alpha and beta must be at least 0 and not both 0, got {alpha} and {beta}")
    pair = _Pair.of(student_logits, teacher_logits, temperature, within_support=alpha == 0)
    log_q, log_p = pair.log_q, pair.log_p
    if beta == 0:
        return pair.scaled(_generalised_kl(alpha * log_p, alpha * log_q) / alpha**2)
    if alpha == 0:
        return pair.scaled(_generalised_kl(beta * log_q, beta * log_p) / beta**2)
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    gap = total * (log_q - log_p)
    # By expm1, term by term: the three powers of the formula cancel, and what is left would drown in rounding.
    larger = (total * torch.maximum(log_p, log_q)).exp()
    share_of_smaller = torch.where(gap > 0, gap.new_tensor(alpha / total), gap.new_tensor(beta / total))
    fall = -gap.abs()
    terms = larger * (share_of_smaller * fall.expm1() - (share_of_smaller * fall).expm1())
    return pair.scaled(terms.sum(-1) / (alpha * beta))


def total_variation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Half the sum of |p - q|, times T squared: at T = 1 the most mass that any event can differ by.

    Arguments and errors as in `forward_kl`.
    """
    pair = _Pair.of(student_logits, teacher_logits, temperature)
    return pair.scaled(0.5 * (pair.log_p.exp() - pair.log_q.exp()).abs().sum(-1))


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32: float64 stays, halves go up."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is a positive, finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_skew(alpha: float) -> None:
    """Raise ValueError unless alpha can be the share of a distribution in its own skewed target."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")


def aligned(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least fp32, the teacher's over the student's columns: see the module's word on padding.

    Raises:
        ValueError: the shapes do not fit, or the teacher is not known by dense logits.
    """
    if not isinstance(teacher_logits, Tensor):
        raise ValueError(f"this divergence needs the teacher's logits, got {type(teacher_logits).__name__}")
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
    return student, teacher


@dataclass(frozen=True)
class _Pair:
    """Both log-distributions at T, `[..., vocab]`, and where one of the sides has none, bool `[...]`."""

    log_q: Tensor
    log_p: Tensor
    broken: Tensor
    temperature: float

    @classmethod
    def of(
        cls, student_logits: Tensor, teacher_logits: Tensor, temperature: float, within_support: bool = False
    ) -> _Pair:
        """Over the student's columns, or over those that the teacher allows."""
        check_temperature(temperature)
        student, teacher = aligned(student_logits, teacher_logits)
        if within_support:
            student = student.masked_fill(teacher == -math.inf, -math.inf)
        student, teacher = student / temperature, teacher / temperature
        broken = no_distribution(student) | no_distribution(teacher)
        log_q, log_p = (blanked(side, broken).log_softmax(-1) for side in (student, teacher))
        return cls(log_q, log_p, broken.squeeze(-1), temperature)

    def scaled(self, values: Tensor) -> Tensor:
        """Values `[...]` times T squared, infinity where a side has no distribution."""
        return (self.temperature**2 * values).masked_fill(self.broken, math.inf)


def _generalised_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum [a log(a / b) - a + b], for measures that need not sum to one."""
    return kl(log_a, log_b) + (log_b.exp() - log_a.exp()).sum(-1)


def _log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), with finite gradients where either is zero."""
    floor = torch.finfo(log_a.dtype).min
    return torch.logaddexp(log_a.clamp(min=floor) + math.log(share), log_b + math.log1p(-share))
