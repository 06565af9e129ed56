"""The common axis of the dots in a table."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.contracts.records import ResultRow
from stillroom.report.drawing import ticks


@dataclass(frozen=True)
class Scale:
    """The common axis of a table's dots: shares of right answers as percent of the width."""

    low: float
    high: float

    @staticmethod
    def over(rows: list[ResultRow]) -> Scale:
        """It starts at a round value where all are high, so that small differences show; its marks say so.

        The untrained student has no say: it would press the others together.
        """
        ends = [
            end for row in rows if row.model != "before" for end in (row.value, row.low) if end is not None
        ]
        lowest = min(ends, default=0.0)
        return Scale(int(10 * lowest) / 10 if lowest > 0.3 else 0.0, 1.0)

    @property
    def marks(self) -> list[float]:
        """Round shares for the axis."""
        return ticks(self.low, self.high)

    def at(self, value: float) -> float:
        """Percent of the width; what is off the scale stands at its end."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)
