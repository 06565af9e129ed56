"""Quality against the share of questions that goes to the teacher, beside what chance and what an oracle would do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.stats.intervals import Floats, Values


@dataclass(frozen=True, eq=False)
class Curve:
    """Share of right answers when the student's lowest-scored answers are replaced by the teacher's."""

    shares: Floats
    """[items + 1]: 0, 1/items ... 1 of the questions sent on."""
    quality: Floats
    """[items + 1]."""
    oracle: Floats
    """[items + 1]: of a router that knows what the teacher will make right."""

    @property
    def weak(self) -> float:
        """The student alone."""
        return float(self.quality[0])

    @property
    def strong(self) -> float:
        """The teacher alone."""
        return float(self.quality[-1])

    def at(self, share: float) -> float:
        """Quality when this share is sent on."""
        return float(np.interp(share, self.shares, self.quality))

    def best(self, share: float) -> float:
        """Quality when an oracle chooses this share."""
        return float(np.interp(share, self.shares, self.oracle))

    def random(self, share: float) -> float:
        """Quality when this share, drawn blindly, is sent on."""
        return self.weak + share * (self.strong - self.weak)

    @property
    def apgr(self) -> float | None:
        """Average performance gap recovered (RouteLLM, arXiv 2406.18665): how much of the way from student to teacher
        is gone, the mean over all shares; chance has 0.5. None where the teacher is no better."""
        if self.strong <= self.weak:
            return None
        return float((np.trapezoid(self.quality, self.shares) - self.weak) / (self.strong - self.weak))

    def cpt(self, part: float) -> float | None:
        """Call-performance threshold: the least share sent on that goes this part of the way from student to teacher."""
        if self.strong <= self.weak:
            return None
        wanted = self.weak + part * (self.strong - self.weak)
        return float(self.shares[int(np.argmax(self.quality >= wanted - 1e-12))])


def escalation_curve(scores: Values, student: Values, teacher: Values) -> Curve:
    """The curve of one way of scoring.

    Args:
        scores: [items], the lowest are sent on first; equal ones together, each for its share of what they bring.
        student: [items] whether the student's answer is right.
        teacher: [items] whether the teacher's is.

    Raises:
        ValueError: empty or of unequal length.
    """
    score, own = np.asarray(scores, dtype=np.float64), np.asarray(student, dtype=np.float64)
    gains = np.asarray(teacher, dtype=np.float64) - own
    if score.ndim != 1 or not score.size or score.shape != own.shape or own.shape != gains.shape:
        raise ValueError(f"expected equally long lists, got {score.shape}, {own.shape}, {gains.shape}")
    _, group = np.unique(score, return_inverse=True)
    together = (np.bincount(group, weights=gains) / np.bincount(group))[group]
    n, start = len(own), own.mean()
    quality = start + _summed(together[np.argsort(score, kind="stable")]) / n
    oracle = start + _summed(np.sort(gains)[::-1]) / n
    return Curve(np.arange(n + 1) / n, quality, oracle)


def _summed(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])
