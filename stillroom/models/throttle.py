"""How many requests an API is asked at once, and how long to wait before asking again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_DECREASE = 0.75
_SUCCESSES = 25
_LONGEST_WAIT = 60.0
_LONGEST_RETRY_AFTER = 600.0


class Throttle:
    """Places for requests in flight: a quarter fewer after a 429, one more after 25 successes (AIMD).

    Use as `async with throttle as ticket`, on one event loop.

    Args:
        most: places to start with, and never exceeded.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.active = 0
        self._successes = 0
        self._round = 0
        self._resume = 0.0
        self._free = asyncio.Condition()

    async def __aenter__(self) -> int:
        while True:
            await asyncio.sleep(self._resume - time.monotonic())
            async with self._free:
                await self._free.wait_for(lambda: self.active < int(self.limit))
                if self._resume <= time.monotonic():
                    self.active += 1
                    return self._round

    async def __aexit__(self, *_: object) -> None:
        async with self._free:
            self.active -= 1
            self._free.notify_all()

    def succeeded(self) -> None:
        """A request was answered."""
        self._successes += 1
        if self._successes >= _SUCCESSES:
            self._successes = 0
            self.limit = min(self.most, self.limit + 1)

    def limited(self, ticket: int, retry_after: float | None) -> None:
        """A request was answered with 429.

        Args:
            ticket: what entering gave. Of requests that were in flight together only the first one lowers the limit.
            retry_after: seconds in which the server wants no request at all.
        """
        if ticket == self._round:
            self._round += 1
            self._successes = 0
            self.limit = max(1.0, self.limit * _DECREASE)
        if retry_after:
            self._resume = max(self._resume, time.monotonic() + retry_after)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that a response names (RFC 9110, 10.2.3: seconds or a date), at most ten minutes."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def backoff(attempt: int, first: float) -> float:
    """Seconds before the next attempt: doubled each time, half of it left to chance."""
    return min(first * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
