"""Asking over HTTP again where that may help: what passes, how long to wait, and a call made until it works."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NoReturn, TypeVar

import aiohttp

from stillroom.models.budget import LONGEST
from stillroom.models.chat_completions import error_text
from stillroom.models.endpoint import Endpoint

ATTEMPTS = 8
"""How often a call is made that one process waits for."""
_PASSING = {408, 409, 425, 429}
_LONGEST_WAIT = 60.0
_MOST_TOLD = 20_000
"""Bytes of a response with an error status that are looked at."""
T = TypeVar("T")


class Passing(Exception):
    """A fault that may be gone at the next attempt.

    Args:
        text: what it was.
        wait: seconds that the server wants to pass first.
        paid: the server answered, though not usably; the answer was probably charged.
    """

    def __init__(self, text: str, wait: float | None = None, *, paid: bool = False) -> None:
        super().__init__(text)
        self.wait = wait
        self.paid = paid

    def pause(self, attempt: int, first: float) -> float:
        """Seconds before the next attempt: what the server wants, else `backoff`."""
        return self.wait or backoff(attempt, first)


async def until_it_works(
    once: Callable[[], Awaitable[T]], endpoint: Endpoint, *, attempts: int = ATTEMPTS, first_wait: float
) -> T:
    """What `once` returns, called again after each fault that may pass.

    Args:
        once: one attempt. Lost connections, answers that took too long and answers that are not what was asked for
            (ValueError) may pass, beside what it raises as Passing.
        endpoint: whose key is kept out of what is told.
        attempts: most calls.
        first_wait: seconds before the second one; they double from there.

    Raises:
        Passing: the last attempt's fault.
    """
    attempt = 0
    while True:
        try:
            return await once()
        except Passing as told:
            fault = told
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            fault = Passing(endpoint.clean(error))
        attempt += 1
        if attempt >= attempts:
            raise fault
        await asyncio.sleep(fault.pause(attempt - 1, first_wait))


async def fault_of(
    response: aiohttp.ClientResponse, endpoint: Endpoint, refuse: Callable[[int, str], NoReturn]
) -> Passing:
    """What a response with an error status means.

    Args:
        refuse: called with the status and what was said, in one line, where another attempt mends nothing; it raises.

    Raises:
        TeacherError: the key is refused.
    """
    text = (await response.read())[:_MOST_TOLD].decode(errors="replace")
    with suppress(ValueError):
        text = error_text(json.loads(text))
    said = f"HTTP {response.status}: {endpoint.clean(text)}"
    if response.status in (401, 403):
        endpoint.refuse("refuses the API key", said, f"check the key in ${endpoint.key_env}")
    if not may_pass(response.status):
        refuse(response.status, said)
    return Passing(said, retry_after(response.headers))


def may_pass(status: int) -> bool:
    """Whether a status is one of those that another attempt may mend."""
    return status >= 500 or status in _PASSING


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
    return min(max(0.0, seconds), LONGEST)  # in this order "nan" is 0


def backoff(attempt: int, first: float) -> float:
    """Seconds before the next attempt: doubled each time, half of it left to chance."""
    return min(first * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
