"""The inventing teacher's replies on disk: each is one synced line, found again by all that it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Answerer, Message, Request, Sampling, content_key
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teaching import Panel, limit_reached, teach

ANSWER_FORMS = ("response_format", "tools", "tool_choice")
"""Parameters that shape answers to the questions, not their invention."""


@dataclass
class KeptAsking:
    """A teacher that is asked only what has no reply on disk; an `Ask` for `Expansion`.

    Args:
        teacher: who is asked.
        origin: the teacher's address or digest, part of every key.
        file: where replies are kept.
        sampling: how replies are drawn.
        bill: stops the asking at the limit of costs.
        parameters: of every request's body, part of every key.
    """

    teacher: Answerer
    origin: str
    file: AnswersFile
    sampling: Sampling
    bill: Bill
    parameters: Mapping[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """asked, answered before, failed, prompt tokens, completion tokens."""

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]:
        """The replies, in order; "" where a request failed or was refused.

        A failure stays one: later requests were planned, and paid for, without its reply. Only where all failed, so that
        nothing was planned after them, are they asked again.

        Raises:
            ServiceFault: none of the requests was answered.
            TeacherError: the API refuses.
            UserError: the limit of costs is reached.
        """
        requests = [self._request(messages) for messages in conversations]
        hopeless = not any(request.key in self.file for request in requests)
        missing = {
            request.key: request for request in requests if hopeless or self.file.read(request.key) is None
        }
        self.counts["answered before"] += len(requests) - len(missing)
        taught = teach(missing.values(), self.teacher, self.sampling, self.file, self.bill, Panel(Meter()))
        self.counts["asked"] += sum(
            taught.counts[finish] for finish in ("stop", "length", "refused", "failed")
        )
        for name in ("failed", "prompt tokens", "completion tokens"):
            self.counts[name] += taught.counts[name]
        if taught.stopped:
            raise limit_reached(self.bill)
        if requests and not any(request.key in self.file for request in requests):
            raise ServiceFault(
                "the teacher invented nothing: every request failed",
                got=taught.last_error,
                do="mend the endpoint and run again: what was answered is kept",
            )
        return [self._text(request) for request in requests]

    def _request(self, messages: list[Message]) -> Request:
        parts = ["expand", self.origin, self.teacher.name, messages, vars(self.sampling)]
        key = content_key(*parts, *([dict(self.parameters)] if self.parameters else []))
        return Request(key, messages)

    def _text(self, request: Request) -> str:
        answer = self.file.read(request.key)
        if answer is None or answer.finish not in ("stop", "length"):
            return ""
        return str(answer.messages[-1]["content"] or "")
