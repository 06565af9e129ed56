"""The five calls of an OpenAI-style batch endpoint, each tried again where that may help."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import aiohttp

from stillroom.contracts.errors import ServiceFault
from stillroom.models.endpoint import Endpoint
from stillroom.models.retrying import ATTEMPTS, Passing, backoff, fault_of, until_it_works

_BLOCK = 1 << 20


class BatchHttp:
    """Files up, batches made and looked at, files down; calls return when they are done.

    Args:
        endpoint: where.
        timeout: seconds without a sign of life from the server.
        first_wait: seconds before the first retry; they double from there.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float, first_wait: float = 1.0) -> None:
        self.endpoint = endpoint
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=timeout)
        self._first_wait = first_wait
        self._runner = asyncio.Runner()

    def upload(self, path: Path) -> str:
        """Send a file of requests; its id there."""
        return str(self._json("POST", "/files", file=path)["id"])

    def create(self, file_id: str, name: str) -> str:
        """Have a file's requests answered; the batch's id. `name` finds it again by `find`.

        A call that came to nothing may have made the batch all the same, and a second one would be paid for as well: it is
        looked for before another call is made.

        Raises:
            ServiceFault: call after call came to nothing.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"stillroom": name},
        }
        for attempt in range(ATTEMPTS):
            try:
                return str(self._json("POST", "/batches", body=body, attempts=1)["id"])
            except ServiceFault as fault:
                told = fault
            time.sleep(backoff(attempt, self._first_wait))
            if (made := self.find(name)) is not None:
                return made
        raise told

    def find(self, name: str) -> str | None:
        """The id of the batch that was made under this name, if there is one."""
        after = ""
        while True:
            told = self._json("GET", f"/batches?limit=100{after}")
            batches = told.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get("stillroom") == name:
                    return str(batch["id"])
            if not batches or not told.get("has_more"):
                return None
            after = f"&after={batches[-1]['id']}"

    def look(self, batch_id: str) -> dict[str, Any]:
        """What the API says of a batch."""
        return self._json("GET", f"/batches/{batch_id}")

    def download(self, file_id: str, path: Path) -> None:
        """Write a file of the API to disk."""
        self._json("GET", f"/files/{file_id}/content", into=path)

    def close(self) -> None:
        """Let go of the event loop."""
        self._runner.close()

    def _json(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, Any] | None = None,
        file: Path | None = None,
        into: Path | None = None,
        attempts: int = ATTEMPTS,
    ) -> dict[str, Any]:
        once = partial(self._once, method, route, body, file, into)
        work = until_it_works(once, self.endpoint, attempts=attempts, first_wait=self._first_wait)
        try:
            return self._runner.run(work)
        except Passing as fault:
            raise ServiceFault(
                f"the batch endpoint of {self.endpoint.url} keeps failing",
                got=f"{method} {route.partition('?')[0]}, {attempts} times: {fault}",
                do="run the same command again later: batches that were handed in are found again",
            ) from None

    async def _once(
        self, method: str, route: str, body: dict[str, Any] | None, file: Path | None, into: Path | None
    ) -> dict[str, Any]:
        with ExitStack() as opened:
            form = _form(opened.enter_context(file.open("rb")), file.name) if file else None
            async with (
                aiohttp.ClientSession(headers=self.endpoint.headers, timeout=self._timeout) as session,
                session.request(method, self.endpoint.url + route, json=body, data=form) as response,
            ):
                if response.status < 300:
                    return await _taken(response, into)
                raise await fault_of(response, self.endpoint, self._refuse)

    def _refuse(self, status: int, said: str) -> NoReturn:
        """Raise TeacherError: no retry mends this."""
        if status in (404, 405):
            self.endpoint.refuse(
                "has no batch endpoint, or no longer this batch", said, "teach.batch_endpoint: false"
            )
        self.endpoint.refuse("does not take this batch", said, "mend what it says")


def _form(file: IO[bytes], name: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", file, filename=name, content_type="application/jsonl")
    return form


async def _taken(response: aiohttp.ClientResponse, into: Path | None) -> dict[str, Any]:
    """The JSON of a response, or its content in a file."""
    if into is None:
        told = await response.json(content_type=None)
        if not isinstance(told, dict):
            raise ValueError(f"not a JSON object: {str(told)[:80]}")
        return told
    with into.open("wb") as file:
        async for part in response.content.iter_chunked(_BLOCK):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return {}
