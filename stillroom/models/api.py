"""A model behind an OpenAI-compatible API: hosted, or a server such as llama-server, vLLM or Ollama."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp

from stillroom.contracts.errors import ServiceFault, TeacherError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.chat_completions import Malformed, error_code, error_text, payload, read_reply
from stillroom.models.throttle import Throttle, backoff, retry_after

OPENAI = "openai"
_DEFAULT_URL = "https://api.openai.com/v1"
_AHEAD = 4
"""Requests taken from the caller for each place in flight: those that wait to be retried hold no others up."""
_RETRIED = {408, 409, 425, 429}


class _Passing(Exception):
    """A fault that may be gone at the next attempt."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


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
        timeout: seconds for one answer.
        attempts: how often a request is sent before it counts as failed.
        first_wait: seconds before the first retry; they double from there.

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
        timeout: float = 600.0,
        attempts: int = 10,
        first_wait: float = 0.5,
    ) -> None:
        url = (os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL) if base_url == OPENAI else base_url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise TeacherError(
                "the teacher's API has no usable address",
                got=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
                expected="a base URL without a password, such as http://127.0.0.1:8080/v1, or `openai`",
                do="mend teacher.api",
            )
        self.name = model
        self.url = url.rstrip("/")
        self.concurrency = concurrency
        self._key = os.environ.get(api_key_env, "").strip()
        self._key_env = api_key_env
        if not self._key and self.url == _DEFAULT_URL:
            raise TeacherError(
                f"there is no API key for {self.url}",
                got=f"${api_key_env} is not set",
                expected="the key in that environment variable",
                do=f"export {api_key_env}=... , or name another variable in teacher.api_key_env",
            )
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 30))
        self._attempts, self._first_wait = attempts, first_wait
        self._limit_key = "max_tokens"
        self._answered = False
        self._session: aiohttp.ClientSession | None = None
        self._throttle = Throttle(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stillroom-api", daemon=True)
        self._thread.start()

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply as it arrives; at most four times `concurrency` are taken ahead.

        Raises:
            TeacherError: the key, the model's name or the address is wrong; raised at the first request that shows it.
            ServiceFault: request after request failed.
        """
        remaining = iter(requests)
        results: SimpleQueue[Future[tuple[Request, Reply]]] = SimpleQueue()
        pending: set[Future[tuple[Request, Reply]]] = set()
        failures = 0
        try:
            while True:
                while len(pending) < _AHEAD * self.concurrency:
                    request = next(remaining, None)
                    if request is None:
                        break
                    future = asyncio.run_coroutine_threadsafe(self._answer(request, sampling), self._loop)
                    pending.add(future)
                    future.add_done_callback(results.put)
                if not pending:
                    return
                future = results.get()
                pending.remove(future)
                answered, reply = future.result()
                yield answered, reply
                failures = failures + 1 if reply.finish == "failed" else 0
                if failures >= max(8, self.concurrency):
                    raise ServiceFault(
                        f"the teacher at {self.url} keeps failing",
                        got=f"{failures} requests in a row, each tried up to {self._attempts} times: {reply.error}",
                        do="check the server, then run the same command again: what was answered is kept",
                    )
        finally:
            for future in pending:
                future.cancel()

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
        if self._session is not None:
            await self._session.close()

    async def _answer(self, request: Request, sampling: Sampling) -> tuple[Request, Reply]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=self.concurrency),
            )
        for attempt in range(self._attempts):
            try:
                async with self._throttle as ticket:
                    reply = await self._once(self._session, ticket, request, sampling)
            except _Passing as fault:
                told = f"{fault} (after {attempt + 1} attempts)"
                if attempt + 1 < self._attempts:
                    await asyncio.sleep(fault.wait or backoff(attempt, self._first_wait))
            else:
                self._answered = True
                return request, reply
        return request, Reply("", "failed", error=told)

    async def _once(
        self, session: aiohttp.ClientSession, ticket: int, request: Request, sampling: Sampling
    ) -> Reply:
        """One attempt: a reply, or what kind of fault it was."""
        begun = time.perf_counter()
        body = payload(self.name, request, sampling, self._limit_key)
        try:
            async with session.post(f"{self.url}/chat/completions", json=body) as response:
                content = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if not self._answered:
                self._refuse(
                    "cannot be reached",
                    self._clean(error),
                    "check teacher.api, and that the server is running",
                )
            raise _Passing(self._clean(error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Passing(self._clean(error)) from None
        try:
            told = json.loads(content)
        except ValueError:
            told = content.decode(errors="replace")
        if response.status == 200:
            try:
                reply = read_reply(told, time.perf_counter() - begun)
            except Malformed as error:
                if isinstance(told, str) and response.content_type == "text/html" and not self._answered:
                    self._refuse(
                        "answered with a web page", self._clean(told), "check teacher.api: most end in /v1"
                    )
                raise _Passing(self._clean(error)) from None
            self._throttle.succeeded()
            return reply
        wait = retry_after(response.headers)
        if response.status == 429 and error_code(told) != "insufficient_quota":
            self._throttle.limited(ticket, wait)
        return self._fault(response.status, told, wait, body)

    def _fault(self, status: int, told: Any, wait: float | None, body: dict[str, Any]) -> Reply:
        """What a response with an error status means."""
        text = f"HTTP {status}: {self._clean(error_text(told))}"
        if error_code(told) == "insufficient_quota":
            self._refuse(
                "says that the account has no quota left", text, "top up the account, then run again"
            )
        if status in (401, 403):
            do = f"check the key in ${self._key_env}" if self._key else f"put its key into ${self._key_env}"
            self._refuse("refuses the API key", text, do)
        if status in (404, 405):
            self._refuse(
                f"does not know the model {self.name} or this address",
                text,
                f"check teacher.model and teacher.api; {self.url}/models lists what is there",
            )
        if status in _RETRIED or status >= 500:
            raise _Passing(text, wait)
        if "max_completion_tokens" in text and "max_tokens" in body:
            # Newer hosted models insist on the newer name, many servers know only the older.
            self._limit_key = "max_completion_tokens"
            raise _Passing(text, self._first_wait)
        refused = error_code(told) == "content_filter"
        return Reply("", "refused" if refused else "failed", error=text)

    def _refuse(self, what: str, got: str, do: str) -> NoReturn:
        raise TeacherError(
            f"the teacher at {self.url} {what}",
            got=got,
            expected="an OpenAI-compatible API that answers",
            do=do,
        )

    def _clean(self, text: object) -> str:
        """One line without the key."""
        line = " ".join(str(text).split())[:300] or type(text).__name__
        return line.replace(self._key, "[key]") if self._key else line
