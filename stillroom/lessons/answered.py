"""The file of answers: one synced line each, found again by key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import SyncedLines
from stillroom.contracts.records import Answer, Reply, Request, from_line, to_line
from stillroom.lessons.answers import assistant_turn


class AnswersFile:
    """teach/answers.jsonl, opened for reading by key and for appending.

    In memory it holds a key and an offset an answer. Of several lines with one key (a failure, asked again) the
    last counts. Opening it for reading alone changes nothing on disk.

    Raises:
        DataError: a line in the middle of the file is damaged.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._lines = SyncedLines(path) if writable else None
        self._offsets: dict[str, int] = {}
        self._failed: set[str] = set()
        self._file = path.open("rb")
        offset = 0
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n"):
                break  # half a line, which a killed writer left: it never counted
            self._index(text, offset, number)
            offset += len(text)

    def _index(self, text: bytes, offset: int, number: int) -> None:
        try:
            line = json.loads(text)
            key, finish = line["key"], line["finish"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}, line {number} is damaged",
                got=str(error),
                expected="an answer",
                do="delete that line; its question is asked again",
            ) from None
        self._offsets[key] = offset
        (self._failed.add if finish == "failed" else self._failed.discard)(key)

    def __contains__(self, key: str) -> bool:
        """Whether the request has an answer; failures do not count, truncated and refused answers do."""
        return key in self._offsets and key not in self._failed

    def read(self, key: str) -> Answer | None:
        """The answer to a request, a failed one included, or None."""
        if key not in self._offsets:
            return None
        self._file.seek(self._offsets[key])
        return from_line(Answer, json.loads(self._file.readline()))

    def append(self, answers: Iterable[Answer]) -> None:
        """Write answers; when this returns they are on disk."""
        assert self._lines is not None, "opened for reading"
        self._lines.append(to_line(answer) for answer in answers)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer_of(request: Request, reply: Reply) -> Answer:
    """The line that a reply becomes."""
    return Answer(
        key=request.key,
        prompt=request.prompt,
        sample=request.sample,
        messages=[*request.messages, {"role": "assistant", "content": assistant_turn(reply)}],
        finish=reply.finish,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        logprob=round(sum(reply.logprobs), 6) if reply.logprobs is not None else None,
        alternatives=reply.alternatives,
        seconds=round(reply.seconds, 4),
        error=reply.error,
    )
