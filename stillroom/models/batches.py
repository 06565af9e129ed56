"""A model behind an OpenAI-style batch endpoint: cheaper than single requests at most providers, within a day."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.contracts.files import SyncedLines, read_lines, write_lines
from stillroom.contracts.records import Reply, Request, Sampling, content_key
from stillroom.models.batch_http import BatchHttp
from stillroom.models.chat_completions import (
    ChatReply,
    ChatRequest,
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
        self._folder, self._parameters = folder, parameters or {}
        self._poll, self._per_batch = poll, per_batch
        self._journal = SyncedLines(folder / "journal.jsonl")
        self._open: dict[str, str | None] = {}
        """Batches that are not collected by name; the id at the API, or None where it is not known (yet)."""
        for line in read_lines(folder / "journal.jsonl"):
            if line["state"] == "collected":
                self._open.pop(line["name"], None)
            else:
                self._open[line["name"]] = line.get("id")

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
        under_way = {line["key"] for name in self._open for line in read_lines(self._requests(name))}
        fresh = self._chunks((request for request in requests if request.key not in under_way), sampling)
        for name in [name for name, known in self._open.items() if known is None]:
            self._hand_in(name, sampling, again=True)
        exhausted = False
        while self._open or not exhausted:
            while not exhausted and len(self._open) < _OPEN:
                chunk = next(fresh, None)
                exhausted = chunk is None
                if chunk:
                    self._hand_in(self._keep(chunk), sampling)
            over = False
            for name, batch_id in list(self._open.items()):
                batch = self._http.look(batch_id or "")
                if batch.get("status") in _OVER:
                    over = True
                    yield from self._collect(name, batch)
            if self._open and not over:
                time.sleep(self._poll)

    def close(self) -> None:
        """Close the journal; batches that were handed in go on."""
        self._http.close()
        self._journal.close()

    def _requests(self, name: str) -> Path:
        return self._folder / f"{name}.requests.jsonl"

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

    def _keep(self, chunk: list[Request]) -> str:
        """Write down what is about to be handed in, and under which name."""
        name = content_key([request.key for request in chunk], time.time_ns())[:16]
        write_lines(self._requests(name), (vars(request) for request in chunk))
        self._journal.append([{"name": name, "state": "written"}])
        self._open[name] = None
        return name

    def _hand_in(self, name: str, sampling: Sampling, *, again: bool = False) -> None:
        """Make the batch, unless a killed process did."""
        batch_id = self._http.find(name) if again else None
        if batch_id is None:
            upload = self._folder / f"{name}.upload.jsonl"
            with upload.open("wb") as file:
                file.writelines(self._line(request, sampling) for request in self._kept(name))
            batch_id = self._http.create(self._http.upload(upload), name)
            upload.unlink()
        self._journal.append([{"name": name, "state": "handed in", "id": batch_id}])
        self._open[name] = batch_id

    def _kept(self, name: str) -> Iterator[Request]:
        for line in read_lines(self._requests(name)):
            yield ChatRequest(**line) if "parameters" in line else Request(**line)

    def _collect(self, name: str, batch: dict[str, Any]) -> Iterator[list[Pair]]:
        """The answers of a batch that is over; noted as collected once the last were taken over."""
        waiting = {request.key: request for request in self._kept(name)}
        group: list[Pair] = []
        output = self._folder / f"{name}.output.jsonl"
        for file_id in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            self._http.download(file_id, output)
            for line in read_lines(output):
                request = waiting.pop(line.get("custom_id", ""), None)
                if request is not None:  # an id that comes twice counts once
                    group.append((request, _reply(line)))
                if len(group) >= _GROUP:
                    yield group
                    group = []
        errors = (batch.get("errors") or {}).get("data") or [{}]
        told = f"the batch {batch.get('status')}: {error_text(errors[0]) if errors[0] else 'without this answer'}"
        group += [(request, ChatReply("", "failed", error=told)) for request in waiting.values()]
        if group:
            yield group
        self._journal.append([{"name": name, "state": "collected"}])
        del self._open[name]
        output.unlink(missing_ok=True)
        self._requests(name).unlink()


def _reply(line: dict[str, Any]) -> Reply:
    """One line of a batch's output or error file."""
    response = line.get("response") or {}
    body = response.get("body")
    if response.get("status_code") == 200:
        try:
            return read_reply(body, 0.0)
        except Malformed as error:
            return ChatReply("", "failed", error=str(error))
    told = line.get("error") or body
    refused = error_code(body) == "content_filter"
    text = f"HTTP {response.get('status_code', '?')}: {error_text(told)}"
    return ChatReply("", "refused" if refused else "failed", error=text)
