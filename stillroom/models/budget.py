"""How much an API lets through a minute: budgets of our own, and what its x-ratelimit-* headers say is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

Clock = Callable[[], float]

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
LONGEST = 600.0
"""Seconds after which an API is asked again whatever it said."""


class Minute:
    """A budget of ours: in no minute is more than it drawn, but for the last request's tokens.

    A bucket that holds one second's worth and fills at the rate that, with the bucket full at the start of a
    minute, comes to the budget. Drawing more than is in it leaves a debt.

    Args:
        per_minute: requests or tokens.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.capacity = max(1.0, per_minute / 60)
        self.rate = max(per_minute - self.capacity, per_minute / 2) / 60
        self._level, self._at, self._clock = self.capacity, clock(), clock

    def wait(self) -> float:
        """Seconds until something may be drawn; 0 now."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now
        # A hair less than one: sums of small steps never quite come to it.
        return 0.0 if self._level >= 1 - 1e-6 else (1 - self._level) / self.rate

    def draw(self, amount: float) -> None:
        """Take something out, or, below zero, give it back."""
        self._level -= amount


class Told:
    """What an API's headers say is left until a moment that they name.

    What is under way counts as not yet seen by the API; each response sets the sum right, so that too careful a sum
    holds only until the next one. Once nothing is left, nothing goes out before that moment.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._left = float("inf")
        self._until = 0.0

    def heard(self, left: float, seconds: float, under_way: float) -> None:
        """A response says that `left` is left for `seconds`, while `under_way` was drawn and not answered."""
        self._left = left - under_way
        self._until = self._clock() + min(seconds, LONGEST)

    def wait(self) -> float:
        """Seconds until something may be drawn; 0 now."""
        if self._left >= 1:
            return 0.0
        wait = self._until - self._clock()
        if wait <= 0:
            self._left = float("inf")  # until the next response says more
        return max(wait, 0.0)

    def draw(self, amount: float) -> None:
        """Take something out."""
        self._left -= amount


def rate_limits(headers: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """What is left and for how many seconds, of "requests" and "tokens", as far as the headers say both."""
    found = {}
    for kind in ("requests", "tokens"):
        left = headers.get(f"x-ratelimit-remaining-{kind}")
        reset = duration(headers.get(f"x-ratelimit-reset-{kind}", "")) if left is not None else None
        if left is not None and reset is not None:
            try:
                found[kind] = (float(left), reset)
            except ValueError:
                continue
    return found


def duration(text: str) -> float | None:
    """Seconds of "1s", "6m0s", "20ms" or "12.5"; None where it is something else."""
    text = text.strip()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return max(float(text), 0.0)
    except ValueError:
        return None
