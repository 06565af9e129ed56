"""The requests of one asking, on the event loop: ready, in flight, or waiting to be retried while others go on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.chat_client import ChatClient
from stillroom.models.chat_completions import ChatReply
from stillroom.models.retrying import Passing
from stillroom.models.throttle import Throttle, Ticket

_PAID_ATTEMPTS = 5
"""How often an answer that came, but not usably, is asked for: each was probably charged."""

Pair = tuple[Request, Reply]


@dataclass
class Job:
    """A request and how often it was sent, and probably paid for."""

    request: Request
    attempts: int = 0
    paid: int = 0


class Work:
    """What one call of `ApiModel.answer_together` has taken on; lives on the event loop.

    Args:
        client: sends a request once.
        throttle: says when the next may go out.
        sampling: how answers are drawn.
        deliver: takes each reply, and errors that no retry mends.
        attempts: how often a request is sent before it counts as failed.
        first_wait: seconds before the first retry; they double from there.
    """

    def __init__(
        self,
        client: ChatClient,
        throttle: Throttle,
        sampling: Sampling,
        deliver: Callable[[Pair | BaseException], None],
        attempts: int,
        first_wait: float,
    ) -> None:
        self._client, self._throttle, self._sampling, self._deliver = client, throttle, sampling, deliver
        self._attempts, self._first_wait = attempts, first_wait
        self._ready: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        # What answers have come to so far, for the budget of tokens; at first the most that they may.
        self._answer_tokens = float(sampling.max_new_tokens)

    def add(self, requests: Iterable[Request]) -> None:
        """Take requests on."""
        self._ready.extend(map(Job, requests))
        self._pump()

    async def finish(self, seconds: float) -> None:
        """Start nothing more; return when what is in flight has ended, or after so long."""
        self._stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.cancel()

    def cancel(self) -> None:
        """Drop everything."""
        self._stopped = True
        self._ready.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _pump(self) -> None:
        """Send what may be sent now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._ready and not self._stopped:
            wait = self._throttle.wait()
            if wait == float("inf"):
                if self._tasks:
                    return  # the next one that ends pumps again
                wait = 0.05  # every place is another call's
            if wait > 0:
                self._timer = loop.call_later(wait, self._pump)
                return
            job = self._ready.popleft()
            tokens = self._client.prompt_tokens(job.request) + self._answer_tokens
            task = loop.create_task(self._try(job, self._throttle.enter(tokens)))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    async def _try(self, job: Job, ticket: Ticket) -> None:
        spent = None
        try:
            reply = await self._client.ask(ticket, job.request, self._sampling)
            spent = self._settle(reply)
            self._deliver((job.request, reply))
        except Passing as fault:
            self._retry(job, fault)
        except Exception as error:
            self._stopped = True
            self._deliver(error)
        finally:
            self._throttle.leave(ticket, spent)

    def _settle(self, reply: ChatReply) -> float | None:
        """What a reply came to, in tokens; None where the server does not say."""
        if not reply.completion_tokens:
            return None
        self._answer_tokens += 0.05 * (reply.completion_tokens - self._answer_tokens)
        return reply.prompt_tokens + reply.completion_tokens

    def _retry(self, job: Job, fault: Passing) -> None:
        job.attempts += 1
        job.paid += fault.paid
        if job.attempts >= self._attempts or job.paid >= _PAID_ATTEMPTS:
            told = f"{fault} (after {job.attempts} attempts)"
            self._deliver((job.request, ChatReply("", "failed", error=told)))
            return
        wait = fault.pause(job.attempts - 1, self._first_wait)
        asyncio.get_running_loop().call_later(wait, self._again, job)

    def _again(self, job: Job) -> None:
        self._ready.appendleft(job)
        self._pump()
