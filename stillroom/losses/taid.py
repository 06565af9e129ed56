"""A target that moves from the student to the teacher as training goes (Shing et al. 2025, TAID)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from stillroom.losses.divergences import aligned, forward_kl


def taid(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, t: float) -> Tensor:
    """KL(p_t || q) times T squared, where p_t has the logits (1 - t) student + t teacher, over T.

    The student's part of the target is detached. In the fused loss:
    `divergence=partial(taid, t=schedule.t)`, with a `TaidSchedule`.

    Args:
        student_logits: `[..., student vocab]`.
        teacher_logits: `[..., teacher vocab]`, the same leading shape; padding as in
            `stillroom.losses.divergences`, as are rows that are no distribution.
        temperature: T > 0, applied to both.
        t: how far the target has moved, in (0, 1]; at 1 this is forward KL.

    Returns:
        `[...]`, one value a token, in at least fp32.

    Raises:
        ValueError: t outside (0, 1], or as in `forward_kl`.
    """
    if not 0 < t <= 1:
        raise ValueError(f"t must lie in (0, 1], got {t}")
    if t == 1:
        return forward_kl(student_logits, teacher_logits, temperature)
    student, teacher = aligned(student_logits.detach(), teacher_logits)
    return forward_kl(student_logits, (1 - t) * student + t * teacher, temperature)


class TaidSchedule:
    """How far TAID's target has moved: never behind the straight line from `start` to `end`, nor back.

    After a step with loss l, and l' the step before,

        m = momentum * m + (1 - momentum) * (l' - l) / l'
        t = min(end, max(start + (end - start) * step / steps, t + rate * sigmoid(m) * (1 - t)))

    so that t runs ahead of the line while the loss falls. Defaults are the paper's (Shing et al. 2025).

    Args:
        steps: optimiser steps of the whole training.
        start: t of the first step, in (0, end].
        end: t of the last step, at most 1.
        rate: step width of the adaptive part, in [0, 1]; 0 gives the straight line.
        momentum: in [0, 1).

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self, steps: int, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not 0 < start <= end <= 1:
            raise ValueError(f"start and end must hold 0 < start <= end <= 1, got {start} and {end}")
        if not (0 <= rate <= 1 and 0 <= momentum < 1):
            raise ValueError(f"rate must lie in [0, 1] and momentum in [0, 1), got {rate} and {momentum}")
        self.steps, self.start, self.end, self.rate, self.momentum = steps, start, end, rate, momentum
        self.t = start
        self._step = 0
        self._trend = 0.0
        self._previous: float | None = None

    def update(self, loss: float) -> float:
        """Count one optimiser step with this loss, and return the t of the next.

        The loss is that of the whole step, the same on every rank, or ranks would train towards different
        targets. One that is not finite (a step that mixed precision skipped) counts as a step without news.
        """
        self._step += 1
        ahead = self.t
        if math.isfinite(loss):
            if self._previous is not None and self._previous > 0:
                change = (self._previous - loss) / self._previous
                self._trend = self.momentum * self._trend + (1 - self.momentum) * change
                ahead += self.rate * _sigmoid(self._trend) * (1 - self.t)
            self._previous = loss
        line = self.start + (self.end - self.start) * self._step / self.steps
        self.t = min(self.end, max(line, ahead))
        return self.t

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` of a schedule with the same settings needs to go on."""
        return {"t": self.t, "step": self._step, "trend": self._trend, "previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where the other schedule was.

        Raises:
            ValueError: a key is missing, or one is unknown.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"the state must have the keys {sorted(self.state_dict())}, got {sorted(state)}")
        self.t, self._step = state["t"], state["step"]
        self._trend, self._previous = state["trend"], state["previous"]


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x), which does not overflow for a loss that leapt."""
    return 0.5 * (1 + math.tanh(x / 2))
