"""The inventing teacher's replies on disk: each is one synced line, found again by all that it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.records import Answerer, Message, Request, Sampling, content_key
from stillroom.lessons.answered import AnswersFile, answer_of


@dataclass
class KeptAsking:
    """A teacher that is asked only what has no reply on disk; an `Ask` for `Expansion`.

    Args:
        teacher: who is asked.
        origin: the teacher's address or digest, part of every key.
        file: where replies are kept.
        sampling: how replies are drawn.
        advance: told of every reply, an earlier one too.
    """

    teacher: Answerer
    origin: str
    file: AnswersFile
    sampling: Sampling
    advance: Callable[[], None] = lambda: None
    counts: Counter[str] = field(default_factory=Counter)
    """asked, answered before, failed, prompt tokens, completion tokens."""

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]:
        """The replies, in order; "" where a request failed or was refused.

        Raises:
            ServiceFault: none of the requests was answered.
            TeacherError: the API refuses.
        """
        requests = [self._request(messages) for messages in conversations]
        missing = {request.key: request for request in requests if request.key not in self.file}
        self.counts["answered before"] += len(requests) - len(missing)
        error = None
        for request, reply in self.teacher.answer(list(missing.values()), self.sampling):
            self.file.append([answer_of(request, reply)])
            self.counts["asked"] += 1
            self.counts["failed"] += reply.finish == "failed"
            self.counts["prompt tokens"] += reply.prompt_tokens
            self.counts["completion tokens"] += reply.completion_tokens
            error = reply.error or error
            self.advance()
        texts = [self._text(request) for request in requests]
        if missing and not any(request.key in self.file for request in missing.values()):
            raise ServiceFault(
                "the teacher invented nothing: every request failed",
                got=error,
                do="mend the endpoint and run again: what was answered is kept",
            )
        return texts

    def _request(self, messages: list[Message]) -> Request:
        key = content_key("expand", self.origin, self.teacher.name, messages, vars(self.sampling))
        return Request(key, messages)

    def _text(self, request: Request) -> str:
        answer = self.file.read(request.key)
        if answer is None or answer.finish not in ("stop", "length"):
            return ""
        return str(answer.messages[-1]["content"] or "")
