"""What a cascade is to keep to: a bound on errors, a cap on what is sent on, a cap on money."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Of several wishes the caps go first: a promise that costs more than they allow is not given.

    Raises:
        ValueError: nothing is asked for, a share outside 0..1, or a cap on money without the price of an escalation.
    """

    max_error: float | None = 0.05
    """At most this share of the answers that the student keeps may be worse than the teacher's. None: only the caps."""
    confidence: float = 0.95
    max_share: float | None = None
    """At most this share of the questions goes to the teacher."""
    max_cost: float | None = None
    """At most so many dollars for the teacher's answers, of a thousand questions."""
    escalation_cost: float | None = None
    """Dollars of one answer of the teacher."""

    def __post_init__(self) -> None:
        cap = self.cap
        if self.max_error is None and cap is None:
            raise ValueError("a policy needs max_error, max_share or max_cost")
        for name in ("max_error", "confidence"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share}")
        if self.max_share is not None and not 0 <= self.max_share <= 1:
            raise ValueError(f"max_share must lie in 0..1, got {self.max_share}")

    @property
    def cap(self) -> float | None:
        """The largest share that may be sent on; None where no cap is asked for."""
        shares = [self.max_share] if self.max_share is not None else []
        if self.max_cost is not None:
            if self.escalation_cost is None or self.escalation_cost < 0 or self.max_cost < 0:
                raise ValueError("max_cost needs escalation_cost, the dollars of one answer of the teacher")
            shares.append(self.max_cost / 1000 / self.escalation_cost if self.escalation_cost else 1.0)
        return min(1.0, *shares) if shares else None
