"""What the fused loss compares the student with: a teacher, labels, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stillroom.losses import divergences, scored, slopes, sparse
from stillroom.losses.fits import check_fit
from stillroom.losses.heads import Head, TeacherHead, check_head
from stillroom.losses.products import operand, product_dtype
from stillroom.losses.scores import ScoredTokens
from stillroom.losses.targets import SparseTargets

Divergence = Callable[..., Tensor]
Teacher = TeacherHead | SparseTargets | ScoredTokens | Tensor
Piece = SparseTargets | ScoredTokens | Tensor
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jensen_shannon": divergences.jensen_shannon,
    "skew_kl": divergences.skew_kl,
    "skew_reverse_kl": divergences.skew_reverse_kl,
    "alpha_beta": divergences.alpha_beta,
    "total_variation": divergences.total_variation,
    "renormalised_kl": sparse.renormalised_kl,
}


@dataclass(frozen=True)
class Terms:
    """soft * divergence from the teacher + hard * cross-entropy of the labels; arguments as in the fused loss.

    Raises:
        ValueError: settings that do not fit each other.
    """

    teacher: Teacher | None
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
        name = _named(self.divergence)[0]
        if isinstance(self.teacher, SparseTargets):
            sparse.check_kind(self.teacher, name or self.divergence)
        elif isinstance(self.teacher, ScoredTokens):
            if name not in ("reverse_kl", "skew_reverse_kl"):
                raise ValueError(
                    f"scored tokens serve reverse_kl and skew_reverse_kl only, got {name or self.divergence!r}"
                )
            divergences.check_skew(self._skew)
        elif name == "renormalised_kl":
            raise ValueError("renormalised_kl wants a renormalised top-k as SparseTargets; use forward_kl")

    @property
    def dense(self) -> bool:
        """Whether the teacher's logits are held beside the student's."""
        return bool(self.soft) and isinstance(self.teacher, TeacherHead | Tensor)

    def proves(self, soft_values: Tensor) -> bool:
        """Whether these values alone say that both sides are distributions, so that nobody need look at their logits.

        A dense forward KL is finite nowhere else. A CPU is asked for free; a GPU would have to wait for the answer.
        """
        known = self.dense and _named(self.divergence)[0] == "forward_kl" and soft_values.is_cpu
        return known and bool(soft_values.isfinite().all())

    @property
    def _skew(self) -> float:
        """alpha of (skew) reverse KL on scored tokens."""
        name, settings = _named(self.divergence)
        return settings.get("alpha", divergences.SKEW) if name == "skew_reverse_kl" else 0.0

    def check(self, tokens: int, vocab: int) -> None:
        """Raise ValueError unless teacher and labels fit a student of this many positions and columns."""
        labels = self.labels if self.hard else None
        if labels is not None and (labels.shape != (tokens,) or labels.is_floating_point()):
            raise ValueError(
                f"labels must be int64 of shape ({tokens},), got {labels.dtype} of {tuple(labels.shape)}"
            )
        if not self.soft:
            return
        if isinstance(self.teacher, SparseTargets | ScoredTokens):
            taken = "captured" if isinstance(self.teacher, SparseTargets) else "scored"
            check_fit(self.teacher, (tokens, vocab), self.temperature, taken)
            return
        states = self.teacher.hidden if isinstance(self.teacher, TeacherHead) else self.teacher
        if states is not None and (states.dim() != 2 or states.shape[0] != tokens):
            raise ValueError(f"the teacher must have {tokens} positions, got shape {tuple(states.shape)}")
        if isinstance(self.teacher, TeacherHead):
            head = self.teacher
            check_head("teacher", head.hidden, head.weight, head.bias, softcap=head.softcap)

    def strips(
        self, places: Sequence[Tensor], chunks: Sequence[Tensor], vocab: int
    ) -> Iterator[tuple[Piece | None, Tensor | None]]:
        """The teacher and the labels of each of the `places`, a few positions each; None for a term that is off.

        `chunks` are the same positions in longer runs, for which the teacher's logits are computed together.
        """
        if not places:
            return
        rows, sizes = torch.cat(list(places)), [len(place) for place in places]
        labels = self.labels[rows] if self.hard and self.labels is not None else None
        if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= vocab):
            raise ValueError(f"labels must lie in [0, {vocab}) wherever the weight is not 0")
        answers = labels.split(sizes) if labels is not None else [None] * len(sizes)
        yield from zip(self._teachers(rows, sizes, chunks, vocab), answers, strict=True)

    def _teachers(
        self, rows: Tensor, sizes: list[int], chunks: Sequence[Tensor], vocab: int
    ) -> Iterator[Piece | None]:
        teacher = self.teacher if self.soft else None
        # Only what is selected is checked: what padding positions hold need not make sense.
        if isinstance(teacher, SparseTargets):
            captured = teacher.select(rows)
            sparse.check_entries(captured, vocab)
            yield from captured.split(sizes)
        elif isinstance(teacher, ScoredTokens):
            chosen = teacher.select(rows)
            scored.check_scores(chosen, vocab, self._skew)
            yield from chosen.split(sizes)
        elif isinstance(teacher, TeacherHead):
            yield from _logits(teacher, chunks, max(sizes))
        elif teacher is not None:
            yield from (teacher.detach()[place] for place in rows.split(sizes))
        else:
            yield from [None] * len(sizes)

    def compare(
        self, logits: Tensor, teacher: Piece | None, labels: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Soft values and hard values, each `[tokens]`, and the gradient of their weighted sum by the logits."""
        soft = hard = logits.new_zeros(logits.shape[0])
        slope = None
        if teacher is not None:
            soft, slope = self._soft(logits, teacher, gradient)
            if slope is not None and self.soft != 1.0:
                slope.mul_(self.soft)
        if labels is not None:
            hard, second = sparse.value_and_gradient(
                logits, SparseTargets.certain(labels), 1.0, gradient=gradient
            )
            if second is not None:
                second.mul_(self.hard)
                slope = second if slope is None else slope.add_(second)
        return soft, hard, slope

    def _soft(self, logits: Tensor, teacher: Piece, gradient: bool) -> tuple[Tensor, Tensor | None]:
        if isinstance(teacher, SparseTargets):
            return sparse.value_and_gradient(logits, teacher, self.temperature, gradient=gradient)
        if isinstance(teacher, ScoredTokens):
            return scored.value_and_gradient(logits, teacher, self.temperature, self._skew, gradient=gradient)
        function = DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence
        return slopes.value_and_gradient(function, logits, teacher, self.temperature, gradient=gradient)


def _logits(teacher: TeacherHead, chunks: Sequence[Tensor], step: int) -> Iterator[Tensor]:
    """The teacher's logits, `step` positions at a time.

    Its products are taken for a whole chunk in halves, for half a chunk in fp32: so the logits of both sides and
    what is computed from a few of them stay within two chunks in fp32.
    """
    head, hidden = Head.of(teacher), teacher.hidden.detach()
    longest = max(map(len, chunks))
    part = step * math.ceil(longest * 2 / (product_dtype(head.weight).itemsize * step))
    buffer = head.buffer(min(part, longest))
    for some in (some for chunk in chunks for some in chunk.split(part)):
        products = head.products(operand(hidden[some], hidden), buffer)
        yield from (head.logits(rows) for rows in products.split(step))


def _named(divergence: str | Divergence) -> tuple[str | None, dict[str, Any]]:
    """The name and the settings of a divergence given by name, as its function or as a partial of that."""
    if isinstance(divergence, str):
        return divergence, {}
    function, settings = divergence, {}
    if isinstance(divergence, partial):
        function, settings = divergence.func, divergence.keywords
    return next((name for name, known in DIVERGENCES.items() if known is function), None), settings
