"""A model behind an OpenAI-compatible API: hosted, or a server such as llama-server, vLLM or Ollama."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.api_work import Pair, Work
from stillroom.models.chat_client import ChatClient
from stillroom.models.chat_completions import ChatReply
from stillroom.models.endpoint import Endpoint
from stillroom.models.throttle import Throttle

_AHEAD = 4
"""Requests taken from the caller for each place in flight: those that wait to be retried hold no others up."""
_CHUNK = 64
"""Requests taken from the caller before looking for answers again."""
_LEAVING = 30.0
"""Seconds that requests in flight are given to end once one has shown that no other can succeed."""


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
        flight and still arrives within half a minute, is yielded before an error is raised, be it the caller's own or
        Ctrl-C. Requests that the API turns down, each for its own fault, are no sign that it fails.

        Raises:
            TeacherError: the key, the model's name or the address is wrong; raised at the first request that shows it.
            ServiceFault: request after request failed.
            KeyboardInterrupt: the user pressed Ctrl-C; pressed again, nothing is waited for.
        """
        remaining, outstanding, failures = iter(requests), 0, 0
        arrived: SimpleQueue[Pair | BaseException] = SimpleQueue()
        work = Work(self._client, self._throttle, sampling, arrived.put, self._attempts, self._first_wait)
        window, exhausted = _AHEAD * self.concurrency, False
        listening = ExitStack()
        try:
            listening.enter_context(_interrupts(arrived))
            while True:
                batch: list[Pair] = []
                try:
                    room = 0 if exhausted else min(window - outstanding, _CHUNK)
                    fresh = list(islice(remaining, room))
                    exhausted = exhausted or len(fresh) < room
                    if fresh:
                        outstanding += len(fresh)
                        self._loop.call_soon_threadsafe(work.add, fresh)
                    full = exhausted or outstanding >= window
                    fault = _take(arrived, batch, wait=outstanding > 0 and full)
                except BaseException as error:  # the caller's own
                    fault = error
                if not outstanding and fault is None:
                    return
                for _, reply in batch:
                    failures = failures + 1 if _failed(reply) else 0
                if fault is None and failures >= max(8, self.concurrency):
                    fault = self._hopeless(failures, batch[-1][1].error)
                if fault is not None:
                    # What is under way may be paid for.
                    asyncio.run_coroutine_threadsafe(work.finish(_LEAVING), self._loop).result()
                    _take(arrived, batch, wait=False)
                outstanding -= len(batch)
                if batch:
                    yield batch
                if fault is not None:
                    raise fault
        finally:
            listening.close()
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(work.cancel)

    def _hopeless(self, failures: int, last: str | None) -> ServiceFault:
        return ServiceFault(
            f"the teacher at {self.url} keeps failing",
            got=f"{failures} requests in a row, each tried up to {self._attempts} times: {last}",
            do="check the server, then run the same command again: what was answered is kept",
        )

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


@contextmanager
def _interrupts(arrived: SimpleQueue[Pair | BaseException]) -> Iterator[None]:
    """Ctrl-C comes like an answer, so that what is being written is written; the next one interrupts at once."""
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) != usual:
        yield  # somebody else's affair
        return

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, usual)
        arrived.put(KeyboardInterrupt())

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _failed(reply: Reply) -> bool:
    """Whether a reply speaks against the API rather than against its request."""
    return reply.finish == "failed" and not (isinstance(reply, ChatReply) and reply.turned_down)


def _take(
    arrived: SimpleQueue[Pair | BaseException], batch: list[Pair], *, wait: bool
) -> BaseException | None:
    """Add all that has arrived, after waiting for something if asked to; returns the first fault among it."""
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
        return fault
