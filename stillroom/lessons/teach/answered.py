"""The file of answers: one synced line each, found again by key."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stillroom.contracts.errors import DataError, RunError
from stillroom.contracts.files import SyncedLines, storage
from stillroom.contracts.records import Answer, Reply, Request, from_line
from stillroom.contracts.runfolder import Run
from stillroom.lessons.teach.answers import assistant_turn
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.models.chat_completions import ChatReply, ChatRequest

_KEPT = {
    "prompts": "expansion.jsonl",
    "teach": "answers.jsonl",
    "filter": "judgements.jsonl",
    "evaluate": "judgements.jsonl",
}
"""Files of a run in which answers were paid for, by stage."""


@dataclass(frozen=True)
class PaidAnswer(Answer):
    """An answer and what it cost: a line of teach/answers.jsonl as it is written."""

    cached_tokens: int | None = None
    """Of the prompt's tokens, those that the provider billed as cached."""
    cost: float | None = None
    """US dollars, by the prices of its day; None where they were not known."""
    answered_by: str | None = None
    """The model that gave it where it comes from a log; None: the teacher was asked."""
    reference: str | None = None
    """The right answer; in a run it stands with the question, as `check` and `document` do."""
    check: str | None = None
    document: str | None = None


@dataclass
class Totals:
    """Sums over the lines of a file, failures and what logs held apart."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Count a line in."""
        if line["finish"] != "failed" and not line.get("answered_by"):
            self.answers += 1
            self.prompt_tokens += line.get("prompt_tokens") or 0
            self.completion_tokens += line.get("completion_tokens") or 0
            self.seconds += line.get("seconds") or 0.0
            self.cost += line.get("cost") or 0.0


class AnswersFile:
    """teach/answers.jsonl, opened for reading by key and for appending.

    In memory it holds 36 to 72 bytes an answer. Of several lines with one key (a failure, asked again) the last
    counts. Opening it for reading alone changes nothing on disk.

    Raises:
        DataError: it does not exist, or a line in the middle of it is damaged.
        RunError: another process is writing it.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.totals = Totals()
        self._table = KeyTable()  # twice the line's offset, and 1 more for a failure
        if writable:
            with storage(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise DataError(f"{path} does not exist", do="check the path") from None
        self._lines: SyncedLines | None = None
        if writable:
            self._lock()
            self._lines = SyncedLines(path)
        self._end = 0
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n"):
                break  # half a line, which a killed writer left: it never counted
            self._index(text, number)

    def _lock(self) -> None:
        """Before the file is mended: what looks like half a line may be another process's, being written."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RunError(f"another process is writing {self.path}", do="wait for it to end") from None

    def _index(self, text: bytes, number: int) -> None:
        try:
            line = json.loads(text)
            self._add(line, len(text))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path}, line {number} is damaged",
                got=str(error),
                expected="an answer",
                do="delete that line; its question is asked again",
            ) from None

    def _add(self, line: dict[str, Any], length: int) -> None:
        self._table.put(line["key"], 2 * self._end + (line["finish"] == "failed"))
        self.totals.add(line)
        self._end += length

    def __contains__(self, key: str) -> bool:
        """Whether the request has an answer; failures do not count, truncated and refused answers do."""
        number = self._table.get(key)
        return number is not None and not number & 1

    def __len__(self) -> int:
        """Requests with an answer or a failure."""
        return len(self._table)

    def read(self, key: str) -> PaidAnswer | None:
        """The answer to a request, a failed one included, or None."""
        number = self._table.get(key)
        if number is None:
            return None
        self._file.seek(number >> 1)
        return from_line(PaidAnswer, json.loads(self._file.readline()))

    def append(self, answers: Iterable[Answer]) -> None:
        """Write answers; when this returns they are on disk, synced together.

        Raises:
            StorageFault: the disk is full; none of them is in the file.
        """
        assert self._lines is not None, "opened for reading"
        # No deep copy: alternatives are long lists.
        lines = [
            {key: value for key, value in vars(answer).items() if value is not None} for answer in answers
        ]
        self._lines.append(lines)
        written = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size - self._end, self._end)
        for line, text in zip(lines, written.splitlines(keepends=True), strict=True):
            self._add(line, len(text))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer_of(
    request: Request,
    reply: Reply,
    cost: float | None = None,
    answered_by: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> PaidAnswer:
    """The line that a reply becomes.

    Args:
        request: what was asked.
        reply: what came.
        cost: US dollars, where they are known.
        answered_by: the model that a log says gave it.
        known: more fields of the line, known of the question.
    """
    tools = request.parameters.get("tools") if isinstance(request, ChatRequest) else None
    return PaidAnswer(
        key=request.key,
        prompt=request.prompt,
        sample=request.sample,
        messages=[*request.messages, assistant_turn(reply)],
        finish=reply.finish,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        logprob=round(sum(reply.logprobs), 6) if reply.logprobs is not None else None,
        alternatives=reply.alternatives,
        seconds=round(reply.seconds, 4),
        error=reply.error,
        cached_tokens=(reply.cached_tokens if isinstance(reply, ChatReply) else 0) or None,
        cost=cost,
        answered_by=answered_by,
        **{"tools": tools, **(known or {})},
    )


def spent_in(path: Path) -> float:
    """US dollars that a file's answers cost; 0 where there is none."""
    if not path.exists():
        return 0.0
    with AnswersFile(path) as file:
        return file.totals.cost


def spent_by_others(run: Run, stage: str) -> float:
    """US dollars that the other stages of a run spent on answers: `teach.max_cost` is one limit for all."""
    return sum(spent_in(run.folder(name) / file) for name, file in _KEPT.items() if name != stage)
