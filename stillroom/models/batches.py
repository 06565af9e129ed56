"""A model behind an OpenAI-style batch endpoint: cheaper than single requests at most providers, within a day."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.batch_http import BatchHttp
from stillroom.models.batch_journal import BatchJournal
from stillroom.models.chat_completions import (
    ChatReply,
    Malformed,
    error_code,
    error_text,
    payload,
    read_reply,
)
from stillroom.models.endpoint import Endpoint

_OVER = {"completed", "failed", "expired", "cancelled"}
_BYTES = 90 << 20
"""Bytes of a batch's requests; providers take 100 to 200 MB."""
_OPEN = 8
"""Batches handed in at a time."""
_GROUP = 500
"""Answers handed on together."""

Pair = tuple[Request, Reply]


class BatchModel:
    """A chat model behind a batch endpoint; implements `Answerer`.

    Requests are handed in as files of up to `per_batch`, looked at every `poll` seconds and collected when they are
    over. The folder's journal knows every batch until all its answers were taken over: a killed process finds its
    batches again, by their names even where it was killed between handing one in and noting that, and pays for none
    twice.

    Args:
        base_url: as for ApiModel.
        model: the model's name there.
        folder: where journal and requests are kept.
        api_key_env: the environment variable with the key.
        parameters: more keys of every request's body; null takes one out.
        poll: seconds between two looks.
        per_batch: most requests in one batch.
        timeout: seconds without a sign of life from the server.
        first_wait: seconds before the first retry of a call; they double from there.

    Raises:
        TeacherError: the URL is none, or the default provider's key is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        folder: Path,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        parameters: Mapping[str, Any] | None = None,
        poll: float = 30.0,
        per_batch: int = 10_000,
        timeout: float = 600.0,
        first_wait: float = 1.0,
    ) -> None:
        self.name = model
        self._http = BatchHttp(Endpoint.of(base_url, api_key_env), timeout=timeout, first_wait=first_wait)
        self._parameters = parameters or {}
        self._poll, self._per_batch = poll, per_batch
        self._journal = BatchJournal(folder, self._http.endpoint.url)
        self._under_way = set[str]()
        """Keys of the requests in open batches."""

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Pair]:
        """Yield each request with its reply; errors as `answer_together`."""
        for group in self.answer_together(requests, sampling):
            yield from group

    def answer_together(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[list[Pair]]:
        """Yield answers as batches end, first those of batches that an earlier process handed in.

        Raises:
            TeacherError: the key is wrong, or there is no batch endpoint.
            ServiceFault: the endpoint kept failing.
        """
        for name in [name for name, known in self._journal.open.items() if known is None]:
            self._find_again(name)
        self._under_way = self._journal.keys()
        fresh = self._chunks(
            (request for request in requests if request.key not in self._under_way), sampling
        )
        most, waiting, exhausted = _OPEN, list[list[Request]](), False
        while self._journal.open or waiting or not exhausted:
            while len(self._journal.open) < most and (waiting or not exhausted):
                chunk = waiting.pop() if waiting else next(fresh, None)
                exhausted = exhausted or chunk is None
                if chunk:
                    self._hand_in(self._journal.keep(chunk), sampling)
            over = False
            for name, batch_id in list(self._journal.open.items()):
                batch = self._http.look(batch_id or "")
                if _is_one_too_many(batch) and len(self._journal.open) > 1:
                    most = len(self._journal.open) - 1
                    waiting.append(list(self._journal.requests(name)))
                    self._journal.drop(name)
                elif batch.get("status") in _OVER:
                    over = True
                    yield from self._collect(name, batch)
            if self._journal.open and not over:
                time.sleep(self._poll)

    def close(self) -> None:
        """Close the journal; batches that were handed in go on."""
        self._http.close()
        self._journal.close()

    def _chunks(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[list[Request]]:
        """Requests that fit into one batch each."""
        chunk, size = list[Request](), 0
        for request in requests:
            length = len(self._line(request, sampling))
            if chunk and (len(chunk) >= self._per_batch or size + length > _BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(request)
            size += length
        if chunk:
            yield chunk

    def _line(self, request: Request, sampling: Sampling) -> bytes:
        """A request as a line of the file that is handed in."""
        line = {
            "custom_id": request.key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": payload(self.name, request, sampling, parameters=self._parameters),
        }
        return json.dumps(line).encode() + b"\n"

    def _hand_in(self, name: str, sampling: Sampling) -> None:
        """Make the batch."""
        upload = self._journal.folder / f"{name}.upload.jsonl"
        with upload.open("wb") as file:
            file.writelines(self._line(request, sampling) for request in self._journal.requests(name))
        batch_id = self._http.create(self._http.upload(upload), name)
        upload.unlink()
        self._journal.handed_in(name, batch_id)

    def _find_again(self, name: str) -> None:
        """A batch of which a killed process did not note that it had made it: found, or forgotten if it was not made.

        Its requests come anew then; handed in as they lie here they would be asked with today's settings.
        """
        batch_id = self._http.find(name)
        if batch_id is None:
            self._journal.drop(name)
        else:
            self._journal.handed_in(name, batch_id)

    def _collect(self, name: str, batch: dict[str, Any]) -> Iterator[list[Pair]]:
        """The answers of a batch that is over; noted as collected once the last were taken over."""
        waiting = {request.key: request for request in self._journal.requests(name)}
        asked = list(waiting)
        group: list[Pair] = []
        output = self._journal.folder / f"{name}.output.jsonl"
        for file_id in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            self._http.download(file_id, output)
            for line in read_lines(output):
                request = waiting.pop(line.get("custom_id", ""), None)
                if request is not None:  # an id that comes twice counts once
                    group.append((request, self._reply(line)))
                if len(group) >= _GROUP:
                    yield group
                    group = []
        errors = (batch.get("errors") or {}).get("data") or []
        why = self._http.endpoint.clean(error_text(errors[0])) if errors else "without this answer"
        told = f"the batch {batch.get('status')}: {why}"
        group += [(request, ChatReply("", "failed", error=told)) for request in waiting.values()]
        if group:
            yield group
        self._journal.collected(name)
        self._under_way.difference_update(asked)
        output.unlink(missing_ok=True)

    def _reply(self, line: dict[str, Any]) -> Reply:
        """One line of a batch's output or error file."""
        clean = self._http.endpoint.clean
        response = line.get("response") or {}
        body = response.get("body")
        if response.get("status_code") == 200:
            try:
                return read_reply(body, 0.0)
            except Malformed as error:
                return ChatReply("", "failed", error=clean(error))
        told = line.get("error") or body
        refused = error_code(body) == "content_filter"
        text = f"HTTP {response.get('status_code', '?')}: {clean(error_text(told))}"
        return ChatReply("", "refused" if refused else "failed", error=text)


def _is_one_too_many(batch: dict[str, Any]) -> bool:
    """Whether a batch was not taken on because too much waits already; it is handed in again once another is over."""
    errors = (batch.get("errors") or {}).get("data") or [{}]
    return batch.get("status") == "failed" and errors[0].get("code") == "token_limit_exceeded"
