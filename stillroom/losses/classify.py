"""Losses for classifiers: soft and hard labels together, and patience over intermediate states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from stillroom.losses.divergences import check_temperature, forward_kl, widened
from stillroom.losses.hidden import hidden_state_loss
from stillroom.losses.logspace import kl


def classifier_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    alpha: float = 0.5,
    temperature: float = 4.0,
    multi_label: bool = False,
) -> Tensor:
    """alpha * T^2 KL(p || q) + (1 - alpha) * cross-entropy of the labels at T = 1: `[rows]`, at least fp32.

    Hinton, Vinyals and Dean 2015, where T is 3 to 5 for classifiers. With `multi_label` every class is a yes
    or no of its own: p and q are sigmoids, the KL that of two coins and the cross-entropy binary, both summed
    over the classes.

    Args:
        student_logits: `[rows, classes]`.
        teacher_logits: `[rows, classes]`, the same classes in the same order; no gradient reaches them.
        labels: int64 `[rows]`; for `multi_label` `[rows, classes]` in [0, 1]. Not needed at alpha 1.
        alpha: share of the soft term, in [0, 1].
        temperature: T > 0.
        multi_label: whether several classes may hold at once.

    Raises:
        ValueError: shapes, labels, alpha or temperature that do not fit.
    """
    check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
        raise ValueError(
            "student and teacher logits must be [rows, classes] of one shape, got"
            f" {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    student, teacher = widened(student_logits), widened(teacher_logits.detach())
    values = torch.zeros_like(student[:, 0])
    if alpha > 0:
        soft = _coins_kl if multi_label else forward_kl
        values = values + alpha * soft(student, teacher, temperature)
    if alpha < 1:
        values = values + (1 - alpha) * _hard(student, labels, multi_label)
    return values


def _coins_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T squared times the KL of independent yes-or-no distributions, summed over the classes."""
    log_p, log_q = (
        torch.stack([logsigmoid(x / temperature), logsigmoid(-x / temperature)], -1)
        for x in (teacher, student)
    )
    return temperature**2 * kl(log_p, log_q).sum(-1)


def _hard(student: Tensor, labels: Tensor | None, multi_label: bool) -> Tensor:
    rows, classes = student.shape
    shape = (rows, classes) if multi_label else (rows,)
    if labels is None or labels.shape != shape:
        raise ValueError(
            f"a hard-label term needs labels {shape}, got {None if labels is None else tuple(labels.shape)}"
        )
    top = 1 if multi_label else classes - 1
    if rows and not (labels.min() >= 0 and labels.max() <= top):
        raise ValueError(f"labels must lie in [0, {top}], got {labels.min().item()} to {labels.max().item()}")
    if not multi_label:
        return cross_entropy(student, labels, reduction="none")
    return binary_cross_entropy_with_logits(student, labels.to(student.dtype), reduction="none").sum(-1)


def patience_loss(student_states: Tensor, teacher_states: Tensor) -> Tensor:
    """Squared distance of [CLS] states of unit length, summed over the matched layers: `[rows]`.

    Patient KD (Sun et al. 2019): the student's intermediate layers, all but the last, each follow one of the
    teacher's (every second one, or the last ones), beside `classifier_loss`.

    Args:
        student_states: `[rows, layers, width]`, the first token's state after each matched layer.
        teacher_states: the same shape, from the layers matched with them (`map_layers`); no gradient.

    Raises:
        ValueError: the shapes differ, or are not three-dimensional.
    """
    if student_states.dim() != 3:
        raise ValueError(f"states must be [rows, layers, width], got {tuple(student_states.shape)}")
    # |a - b|^2 = 2 (1 - cos) for vectors of unit length.
    return 2 * hidden_state_loss(student_states, teacher_states, kind="cosine").sum(-1)
