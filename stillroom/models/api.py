"""A model behind an OpenAI-compatible API: hosted, or a server such as llama-server, vLLM or Ollama."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.chat_client import ChatClient, Passing
from stillroom.models.chat_completions import ChatReply, estimated_tokens
from stillroom.models.endpoint import Endpoint
from stillroom.models.throttle import Throttle, Ticket, backoff

_AHEAD = 4
"""Requests taken from the caller for each place in flight: those that wait to be retried hold no others up."""
_CHUNK = 64
"""Requests taken from the caller before looking for answers again."""
_PAID_ATTEMPTS = 5
"""How often an answer that came, but not usably, is asked for: each was probably charged."""
_LEAVING = 30.0
"""Seconds that requests in flight are given to end once one has shown that no other can succeed."""

Pair = tuple[Request, Reply]


class ApiModel:
    """A chat model behind an API; implements `Answerer`.

    Requests run on an event loop in a thread of their own and share its connections. Faults that may pass (429, 5xx,
    a cut connection, half a JSON document, a timeout) are retried while other requests go on; a request that fails
    every time comes back as "failed".

    Args:
        base_url: such as http://127.0.0.1:8080/v1, or `openai` for $OPENAI_BASE_URL, else the provider's default.
        model: the model's name there.
        api_key_env: the environment variable with the key; servers other than the default may do without.
        concurrency: most requests in flight.
        requests_per_minute, tokens_per_minute: budgets beside those that the API's headers tell.
        timeout: seconds for one answer.
        attempts: how often a request is sent before it counts as failed.
        first_wait: seconds before the first retry; they double from there.
        parameters: more keys of every request's body, such as `response_format` or `tools`; null takes one out.

    Raises:
        TeacherError: the URL is none, or the default provider's key is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        timeout: float = 600.0,
        attempts: int = 10,
        first_wait: float = 0.5,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        endpoint = Endpoint.of(base_url, api_key_env)
        self.name, self.url, self.concurrency = model, endpoint.url, concurrency
        self._attempts, self._first_wait = attempts, first_wait
        self._throttle = Throttle(
            concurrency, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
        )
        self._client = ChatClient(
            endpoint,
            model,
            self._throttle,
            timeout=timeout,
            connections=concurrency,
            parameters=parameters or {},
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stillroom-api", daemon=True)
        self._thread.start()

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Pair]:
        """Yield each request with its reply as it arrives; errors as `answer_together`."""
        for batch in self.answer_together(requests, sampling):
            yield from batch

    def answer_together(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[list[Pair]]:
        """Yield what has arrived since the last look, at least one: so that a caller can sync many at once.

        At most four times `concurrency` requests are taken ahead of what was yielded. What had arrived, or was in
        flight and still arrives, is yielded before an error is raised.

        Raises:
            TeacherError: the key, the model's name or the address is wrong; raised at the first request that shows it.
            ServiceFault: request after request failed.
        """
        remaining, outstanding, failures = iter(requests), 0, 0
        arrived: SimpleQueue[Pair | BaseException] = SimpleQueue()
        work = _Work(self._client, self._throttle, sampling, arrived.put, self._attempts, self._first_wait)
        window, exhausted = _AHEAD * self.concurrency, False
        try:
            while True:
                room = 0 if exhausted else min(window - outstanding, _CHUNK)
                fresh = list(islice(remaining, room))
                exhausted = exhausted or len(fresh) < room
                if fresh:
                    outstanding += len(fresh)
                    self._loop.call_soon_threadsafe(work.add, fresh)
                if not outstanding:
                    return
                batch, fault = _taken(arrived, wait=exhausted or outstanding >= window)
                if fault is not None:
                    asyncio.run_coroutine_threadsafe(work.finish(_LEAVING), self._loop).result()
                    batch += _taken(arrived, wait=False)[0]
                outstanding -= len(batch)
                if batch:
                    yield batch
                if fault is not None:
                    raise fault
                for _, reply in batch:
                    failures = failures + 1 if reply.finish == "failed" else 0
                    last = reply.error
                if failures >= max(8, self.concurrency):
                    raise ServiceFault(
                        f"the teacher at {self.url} keeps failing",
                        got=f"{failures} requests in a row, each tried up to {self._attempts} times: {last}",
                        do="check the server, then run the same command again: what was answered is kept",
                    )
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(work.cancel)

    def close(self) -> None:
        """Close connections and thread; calling twice is harmless."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()


def _taken(
    arrived: SimpleQueue[Pair | BaseException], *, wait: bool
) -> tuple[list[Pair], BaseException | None]:
    """All that has arrived, after waiting for something if asked to; and the first fault among it."""
    batch: list[Pair] = []
    fault = None
    try:
        item = arrived.get(wait)
        while True:
            if isinstance(item, BaseException):
                fault = fault or item
            else:
                batch.append(item)
            item = arrived.get_nowait()
    except Empty:
        return batch, fault


@dataclass
class _Job:
    request: Request
    attempts: int = 0
    paid: int = 0


class _Work:
    """The requests of one call of `answer_together`, on the event loop: ready, in flight, or waiting to be retried."""

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
        self._ready: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        # What answers have come to so far, for the budget of tokens; at first the most that they may.
        self._answer_tokens = float(sampling.max_new_tokens)

    def add(self, requests: Iterable[Request]) -> None:
        """Take requests on."""
        self._ready.extend(map(_Job, requests))
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
            tokens = estimated_tokens(job.request.messages) + self._answer_tokens
            task = loop.create_task(self._try(job, self._throttle.enter(tokens)))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    async def _try(self, job: _Job, ticket: Ticket) -> None:
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

    def _retry(self, job: _Job, fault: Passing) -> None:
        job.attempts += 1
        job.paid += fault.paid
        if job.attempts >= self._attempts or job.paid >= _PAID_ATTEMPTS:
            told = f"{fault} (after {job.attempts} attempts)"
            self._deliver((job.request, ChatReply("", "failed", error=told)))
            return
        wait = fault.wait or backoff(job.attempts - 1, self._first_wait)
        asyncio.get_running_loop().call_later(wait, self._again, job)

    def _again(self, job: _Job) -> None:
        self._ready.appendleft(job)
        self._pump()
