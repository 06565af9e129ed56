"""One request over HTTP: a reply, a fault that may pass, or a refusal that no retry mends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from stillroom.contracts.records import Request, Sampling
from stillroom.models.chat_completions import (
    ChatReply,
    Malformed,
    error_code,
    error_text,
    payload,
    prompt_tokens,
    read_reply,
)
from stillroom.models.endpoint import Endpoint
from stillroom.models.retrying import Passing, may_pass, retry_after
from stillroom.models.throttle import Throttle, Ticket

_LARGEST = 64 << 20
"""Bytes of an answer after which it is none."""
_PAGES = 3
"""Web pages in place of answers, before the first answer, after which the address is taken to be wrong."""


class ChatClient:
    """Asks one model at one endpoint; lives on one event loop.

    Args:
        endpoint: where.
        model: the model's name there.
        throttle: told of what the responses say about limits.
        timeout: seconds for one answer.
        connections: most connections at a time.
        parameters: more keys of every request's body.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        throttle: Throttle,
        *,
        timeout: float,
        connections: int,
        parameters: Mapping[str, Any],
    ) -> None:
        self.endpoint, self.model, self.throttle = endpoint, model, throttle
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 30))
        self._connections = connections
        self._parameters = parameters
        self._limit_key = "max_tokens"
        self._answered = False
        self._pages = 0
        self._session: aiohttp.ClientSession | None = None
        self._url = f"{endpoint.url}/chat/completions"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={**self.endpoint.headers, "Content-Type": "application/json"},
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=self._connections),
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def prompt_tokens(self, request: Request) -> int:
        """About how many tokens a request's prompt is, tools included."""
        return prompt_tokens(request, self._parameters)

    async def ask(self, ticket: Ticket, request: Request, sampling: Sampling) -> ChatReply:
        """One attempt.

        Raises:
            Passing: it is worth another.
            TeacherError: no request to this endpoint can succeed.
        """
        begun = time.perf_counter()
        body = payload(self.model, request, sampling, self._limit_key, self._parameters)
        try:
            async with self._open().post(self._url, data=json.dumps(body).encode()) as response:
                content = await _read(response)
        except Malformed as error:
            raise Passing(str(error), paid=True) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if not self._answered:
                do = "check teacher.api, and that the server is running"
                self.endpoint.refuse("cannot be reached", self.endpoint.clean(error), do)
            raise Passing(self.endpoint.clean(error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            # Whoever is cut off while it answers has computed, and bills, some of it.
            paid = isinstance(error, (TimeoutError, aiohttp.ClientPayloadError))
            raise Passing(self.endpoint.clean(error), paid=paid) from None
        self.throttle.heard(ticket, response.headers)
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = content[:20_000].decode(errors="replace")
        if response.status == 200:
            return self._reply(told, response.content_type, time.perf_counter() - begun)
        wait = retry_after(response.headers)
        if response.status == 429 and error_code(told) != "insufficient_quota":
            self.throttle.limited(ticket, wait)
        return self._fault(response.status, told, wait, body)

    def _reply(self, told: Any, content_type: str, seconds: float) -> ChatReply:
        try:
            reply = read_reply(told, seconds)
        except Malformed as error:
            self._pages += isinstance(told, str) and content_type == "text/html"
            if self._pages >= _PAGES and not self._answered:
                do = "check teacher.api: most end in /v1"
                self.endpoint.refuse("answered with a web page", self.endpoint.clean(told), do)
            raise Passing(self.endpoint.clean(error), paid=True) from None
        self._answered = True
        self.throttle.succeeded()
        return reply

    def _fault(self, status: int, told: Any, wait: float | None, body: dict[str, Any]) -> ChatReply:
        """What a response with an error status means."""
        endpoint = self.endpoint
        text = f"HTTP {status}: {endpoint.clean(error_text(told))}"
        if error_code(told) == "insufficient_quota":
            endpoint.refuse(
                "says that the account has no quota left", text, "top up the account, then run again"
            )
        if status in (401, 403):
            place = f"${endpoint.key_env}"
            endpoint.refuse(
                "refuses the API key", text, f"{'check the' if endpoint.key else 'put its'} key in {place}"
            )
        if status in (404, 405):
            endpoint.refuse(
                f"does not know the model {self.model} or this address",
                text,
                f"check teacher.model and teacher.api; {endpoint.url}/models lists what is there",
            )
        if may_pass(status):
            raise Passing(text, wait)
        if "max_completion_tokens" in text and "max_tokens" in body:
            # Newer hosted models insist on the newer name, many servers know only the older.
            self._limit_key = "max_completion_tokens"
            raise Passing(text, 0.01)
        refused = error_code(told) == "content_filter"
        return ChatReply("", "refused" if refused else "failed", error=text, turned_down=not refused)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is of a size that an answer may have.

    Raises:
        Malformed: it is larger.
    """
    length = response.content_length
    if length is not None and length <= _LARGEST and "Content-Encoding" not in response.headers:
        return await response.read()
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > _LARGEST:
            raise Malformed(f"an answer of more than {_LARGEST >> 20} MiB")
    return bytes(content)
