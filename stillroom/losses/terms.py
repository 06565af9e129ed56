"""What the fused loss compares the student with: a teacher, labels, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses import divergences, sparse
from stillroom.losses.heads import Head, operand
from stillroom.losses.targets import SparseTargets, TeacherHead

Divergence = Callable[..., Tensor]
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jensen_shannon": divergences.jensen_shannon,
    "skew_kl": divergences.skew_kl,
    "total_variation": divergences.total_variation,
}


@dataclass(frozen=True)
class Compared:
    """What one chunk of student logits is compared with; None where a term is off."""

    teacher: SparseTargets | Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Terms:
    """soft * divergence from the teacher + hard * cross-entropy of the labels; arguments as in the fused loss.

    Raises:
        ValueError: settings that do not fit each other.
    """

    teacher: TeacherHead | SparseTargets | Tensor | None
    labels: Tensor | None
    hard: float
    soft: float
    divergence: str | Divergence
    temperature: float

    def __post_init__(self) -> None:
        divergences.check_temperature(self.temperature)
        if self.hard and self.labels is None:
            raise ValueError("a hard-label term needs labels")
        if self.soft and self.teacher is None:
            raise ValueError("a soft term needs a teacher")
        if isinstance(self.divergence, str) and self.divergence not in DIVERGENCES:
            raise ValueError(f"unknown divergence {self.divergence!r}; known: {', '.join(DIVERGENCES)}")
        if isinstance(self.teacher, SparseTargets) and self.divergence not in (
            "forward_kl",
            divergences.forward_kl,
        ):
            raise ValueError(
                f"sparse targets serve forward_kl only, since only that is linear in p; got {self.divergence!r}"
            )

    def check(self, tokens: int, vocab: int) -> None:
        """Raise ValueError unless teacher and labels fit a student of this many positions and columns."""
        if self.hard and self.labels is not None and self.labels.shape != (tokens,):
            raise ValueError(f"labels must have shape ({tokens},), got {tuple(self.labels.shape)}")
        if not self.soft:
            return
        if isinstance(self.teacher, SparseTargets):
            sparse.check_targets(self.teacher, (tokens, vocab), self.temperature)
            return
        states = self.teacher.hidden if isinstance(self.teacher, TeacherHead) else self.teacher
        if states is not None and (states.dim() != 2 or states.shape[0] != tokens):
            raise ValueError(f"the teacher must have {tokens} positions, got shape {tuple(states.shape)}")

    def over(self, rows: Tensor, size: int, vocab: int) -> Iterator[tuple[Tensor, Compared]]:
        """The positions `rows`, `size` at a time, each with what its logits are compared with."""
        if not rows.numel():
            return
        pieces = rows.split(size)
        labels = self.labels[rows] if self.hard and self.labels is not None else None
        if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= vocab):
            raise ValueError(f"labels must lie in [0, {vocab}) wherever the weight is not 0")
        cut = labels.split(size) if labels is not None else [None] * len(pieces)
        yield from (
            (piece, Compared(teacher, answer))
            for piece, teacher, answer in zip(pieces, self._teachers(rows, size), cut, strict=True)
        )

    def _teachers(self, rows: Tensor, size: int) -> Iterator[SparseTargets | Tensor | None]:
        teacher = self.teacher if self.soft else None
        if isinstance(teacher, SparseTargets):
            yield from teacher.select(rows).split(size)
        elif isinstance(teacher, TeacherHead):
            head, hidden = Head.of(teacher), teacher.hidden.detach()
            yield from (head.logits(operand(hidden[piece], hidden)) for piece in rows.split(size))
        elif teacher is not None:
            yield from (teacher.detach()[piece] for piece in rows.split(size))
        else:
            yield from [None] * len(rows.split(size))

    def compare(
        self, logits: Tensor, with_: Compared, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Soft values and hard values, each `[tokens]`, and the gradient of their weighted sum by the logits."""
        soft = hard = logits.new_zeros(logits.shape[0])
        slope = None
        if with_.teacher is not None:
            soft, slope = self._soft(logits, with_.teacher, gradient)
            if slope is not None and self.soft != 1.0:
                slope.mul_(self.soft)
        if with_.labels is not None:
            hard, second = sparse.value_and_gradient(logits, _certain(with_.labels), 1.0, gradient=gradient)
            if second is not None:
                second.mul_(self.hard)
                slope = second if slope is None else slope.add_(second)
        return soft, hard, slope

    def _soft(
        self, logits: Tensor, teacher: SparseTargets | Tensor, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(teacher, SparseTargets):
            return sparse.value_and_gradient(logits, teacher, self.temperature, gradient=gradient)
        function = DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence
        with torch.set_grad_enabled(gradient):
            leaf = logits.detach().requires_grad_(gradient)
            values = function(leaf, teacher, temperature=self.temperature)
            slope = torch.autograd.grad(values.sum(), leaf)[0] if gradient else None
        return values.detach(), slope


def _certain(labels: Tensor) -> SparseTargets:
    """Labels as targets of one token each, so that cross-entropy is the sparse forward KL from them."""
    none = torch.zeros(labels.shape[0], device=labels.device)
    return SparseTargets(
        labels, none + 1, torch.arange(labels.shape[0] + 1, device=labels.device), none, none
    )
