"""Asking what has no answer yet, and syncing every answer before it counts."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from stillroom.contracts.errors import ServiceFault, UserError
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Answer, Answerer, Finish, Reply, Request, Sampling
from stillroom.lessons.teach.answered import AnswersFile, answer_of
from stillroom.lessons.teach.asking import KnownRequest, LoggedRequest
from stillroom.lessons.teach.bill import Bill
from stillroom.models.chat_completions import ChatReply
from stillroom.models.opening import WhenAsked

_MINUTE = 60.0
_HOPELESS = 64
"""Requests turned down, and none answered, after which the fault is not theirs."""


@dataclass
class Taught:
    """What came of asking."""

    counts: Counter[str]
    last_error: str | None = None
    stopped: bool = False
    """The limit of costs was reached."""
    proved: bool = False
    """The file had answers of a teacher before: whoever turns down what is left does answer others."""

    def turned_down(self, replies: Iterable[Reply]) -> None:
        """Count those that the API did not take, each for its own fault."""
        if count := sum(isinstance(reply, ChatReply) and reply.turned_down for reply in replies):
            self.counts["turned down"] += count


def teach(
    requests: Iterable[Request],
    teacher: Answerer,
    sampling: Sampling,
    file: AnswersFile,
    bill: Bill,
    panel: Panel,
    echo: Callable[[Answer], None] | None = None,
) -> Taught:
    """Ask for every request that has no answer in the file; an answer is in it, synced, before it is counted.

    Requests are streamed: what is in memory does not grow with them. A question that comes twice is asked once.

    Args:
        requests: all of them, those with answers included.
        teacher: an API's client, which gives what arrived together, so that it is synced together, or any other.
        sampling: how answers are drawn.
        file: where answers are looked up and written.
        bill: stops the asking where the next request might pass the limit; what is under way is waited for.
        panel: is told.
        echo: is given every answer, earlier ones included.

    Raises:
        TeacherError, ServiceFault: as the teacher, or it turns every request down; what had arrived is in the file.
        StorageFault: the disk is full.
    """
    taught = Taught(Counter(), proved=file.totals.answers > 0)
    asked: dict[str, Mapping[str, Any]] = {}  # what is under way, and what is known of its questions
    source, held = iter(requests), list[Request]()

    def missing() -> Iterator[Request]:
        for request in source:
            known = request.known if isinstance(request, KnownRequest) else {}
            if request.key in file or request.key in asked:
                panel.cached()
                if isinstance(request, LoggedRequest):
                    taught.counts["from logs"] += 1
                if echo and (answer := file.read(request.key)):
                    echo(replace(answer, **known))
                continue
            if not bill.promise(request):
                held.append(request)
                return
            asked[request.key] = known
            yield request.as_asked() if isinstance(request, KnownRequest) else request

    while True:
        for arrived in together(teacher, missing(), sampling):
            # A batch that a killed process was taking over comes whole again.
            batch = [(request, reply) for request, reply in arrived if request.key not in file]
            answers = [
                answer_of(request, reply, bill.settle(request, reply), known=asked.get(request.key))
                for request, reply in batch
            ]
            file.append(answers)
            for answer in answers:
                asked.pop(answer.key, None)
                taught.counts[answer.finish] += 1
                taught.counts["prompt tokens"] += answer.prompt_tokens
                taught.counts["completion tokens"] += answer.completion_tokens
                taught.last_error = answer.error or taught.last_error
                if echo:
                    echo(answer)
            taught.turned_down(reply for _, reply in batch)
            if taught.counts["turned down"] >= _HOPELESS and not file.totals.answers:
                raise ServiceFault(
                    "the teacher turns every question down",
                    got=f"{taught.counts['turned down']} requests, the last one with: {taught.last_error}",
                    do="mend teach.parameters or the questions, and run again",
                )
            panel.answered(batch, bill)
        if not held:
            return taught
        # All that was promised is settled: what is left may be enough for some more.
        if not bill.promise(held[0]):
            taught.stopped = True
            return taught
        bill.withdraw(held[0])
        source = chain([held.pop()], source)


def conclude(taught: Taught, bill: Bill) -> None:
    """Say so where nothing was answered, or where the limit of costs ended the asking.

    Raises:
        ServiceFault: every request failed.
        UserError: the limit was reached.
    """
    finishes: tuple[Finish, ...] = ("stop", "length", "refused")
    answered = any(taught.counts[finish] for finish in finishes)
    unfit = taught.proved and taught.counts["turned down"] == taught.counts["failed"]
    if taught.counts["failed"] and not answered and not unfit:
        raise ServiceFault(
            "the teacher answered none of the questions",
            got=taught.last_error,
            do="mend the endpoint and run again: what failed is asked again, what was answered is kept",
        )
    if taught.stopped:
        raise limit_reached(bill)


def limit_reached(bill: Bill) -> UserError:
    """The error that ends asking where the next answer might cost too much."""
    return UserError(
        "the limit of costs is reached",
        got=f"${bill.spent:,.4f} spent, and the next answer may pass ${bill.limit:,.4f}",
        do="raise teach.max_cost or --max-cost and run the same command again: what was answered is kept",
    )


def together(
    teacher: Answerer, requests: Iterator[Request], sampling: Sampling
) -> Iterator[list[tuple[Request, Reply]]]:
    """Replies, those that arrived together in one list. A teacher that waits to be asked is opened at the first request."""
    first = next(requests, None)
    if first is None:
        return
    asked = chain([first], requests)
    opened = teacher.teacher if isinstance(teacher, WhenAsked) else teacher
    if (answer_together := getattr(opened, "answer_together", None)) is not None:
        yield from answer_together(asked, sampling)
    else:
        for pair in opened.answer(asked, sampling):
            yield [pair]


class Panel:
    """What the reader sees while the teacher answers: done, cached, failed, pace, spent, projected.

    Args:
        meter: the bar or line.
        total: requests in all, those with answers included; None where they are not counted beforehand.
        cached: how many of them have answers.
    """

    def __init__(self, meter: Meter, total: int | None = None, cached: int = 0) -> None:
        self._meter, self._total, self._before = meter, total, cached
        self._cached = self._failed = self._done = self._tokens = 0
        self._marks = deque([(time.monotonic(), 0, 0)])

    def cached(self) -> None:
        """A request had its answer already."""
        self._cached += 1

    def answered(self, batch: list[tuple[Request, Reply]], bill: Bill) -> None:
        """Replies were written."""
        self._done += len(batch)
        self._failed += sum(reply.finish == "failed" for _, reply in batch)
        self._tokens += sum(reply.prompt_tokens + reply.completion_tokens for _, reply in batch)
        self._meter.advance(len(batch), note=self.note(bill))

    def note(self, bill: Bill) -> str:
        """One line of figures."""
        now = time.monotonic()
        if now - self._marks[-1][0] >= 1:
            self._marks.append((now, self._done, self._tokens))
        while len(self._marks) > 2 and now - self._marks[0][0] > _MINUTE:
            self._marks.popleft()
        since, done, tokens = self._marks[0]
        minutes = max(now - since, 1e-3) / 60
        parts = [
            f"{self._before or self._cached:,} cached",
            f"{self._failed:,} failed",
            f"{(self._done - done) / minutes:,.0f} requests/min",
            f"{(self._tokens - tokens) / minutes:,.0f} tokens/min",
        ]
        if bill.price is not None:
            parts.append(f"${bill.spent:,.2f} spent")
            if self._total and self._done:
                left = self._total - self._before - self._done
                parts.append(f"${bill.spent + left * bill.spent_now / self._done:,.2f} projected")
        return ", ".join(parts)
