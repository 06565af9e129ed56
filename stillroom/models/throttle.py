"""How many requests an API is asked at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from stillroom.models.budget import Clock, Minute, Told, rate_limits

_DECREASE = 0.75
_SUCCESSES = 25


@dataclass(frozen=True)
class Ticket:
    """A request's place: the round of the throttle in which it went out, and the tokens it was taken for."""

    round: int
    tokens: float


class Throttle:
    """Places for requests in flight: a quarter fewer after a 429, one more after 25 successes (AIMD).

    Beside the places it keeps budgets a minute: our own, and those that an API's headers tell. For one thread.

    Args:
        most: places to start with, and never exceeded.
        requests_per_minute: our budget of requests, if any.
        tokens_per_minute: our budget of tokens, prompts and answers together, if any.
        clock: seconds.
    """

    def __init__(
        self,
        most: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.most = most
        self.limit = float(most)
        self.active = 0
        self._tokens_active = 0.0
        self._successes = 0
        self._round = 0
        self._resume = 0.0
        self._clock = clock
        self._own_requests = Minute(requests_per_minute, clock) if requests_per_minute else None
        self._own_tokens = Minute(tokens_per_minute, clock) if tokens_per_minute else None
        self._told = {"requests": Told(clock), "tokens": Told(clock)}

    def wait(self) -> float:
        """Seconds until a request may go out: 0 now, infinity not before one in flight has ended."""
        if self.active >= int(self.limit):
            return float("inf")
        budgets = (self._own_requests, self._own_tokens, *self._told.values())
        waits = [budget.wait() for budget in budgets if budget is not None]
        return max(self._resume - self._clock(), *waits, 0.0)

    def enter(self, tokens: float = 0.0) -> Ticket:
        """A request goes out that will cost about so many tokens."""
        self.active += 1
        self._tokens_active += tokens
        self._told["requests"].draw(1)
        self._told["tokens"].draw(tokens)
        if self._own_requests:
            self._own_requests.draw(1)
        if self._own_tokens:
            self._own_tokens.draw(tokens)
        return Ticket(self._round, tokens)

    def leave(self, ticket: Ticket, tokens: float | None = None) -> None:
        """A request has ended; `tokens` is what it came to, if it was answered."""
        self.active -= 1
        self._tokens_active -= ticket.tokens
        if self._own_tokens and tokens is not None:
            self._own_tokens.draw(tokens - ticket.tokens)

    def succeeded(self) -> None:
        """A request was answered."""
        self._successes += 1
        if self._successes >= _SUCCESSES:
            self._successes = 0
            self.limit = min(self.most, self.limit + 1)

    def limited(self, ticket: Ticket, retry_after: float | None) -> None:
        """A request was answered with 429.

        Args:
            ticket: what entering gave. Of requests that were in flight together only the first one lowers the limit.
            retry_after: seconds in which the server wants no request at all.
        """
        if ticket.round == self._round:
            self._round += 1
            self._successes = 0
            self.limit = max(1.0, self.limit * _DECREASE)
        if retry_after:
            self._resume = max(self._resume, self._clock() + retry_after)

    def heard(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """Take note of a response's x-ratelimit-* headers."""
        under_way = {"requests": self.active - 1, "tokens": self._tokens_active - ticket.tokens}
        for kind, (left, seconds) in rate_limits(headers).items():
            self._told[kind].heard(left, seconds, under_way[kind])
