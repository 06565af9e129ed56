"""What asking will come to, before the first request: requests, tokens, money, time, terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillroom.contracts.recipe import Teach, Teacher
from stillroom.contracts.records import Request
from stillroom.lessons.teach.answered import AnswersFile, Totals
from stillroom.lessons.teach.asking import LoggedRequest
from stillroom.models.chat_completions import prompt_tokens
from stillroom.models.endpoint import base_url
from stillroom.models.teachers import BUILT_IN, Price, Terms

_PACE = 50
"""Tokens a second of one answer, where no answer has told."""


@dataclass
class Outlook:
    """Counts over all requests; `tokens` are the estimated ones of the prompts that are still to be asked."""

    requests: int = 0
    answered: int = 0
    """What logs answered included."""
    tokens: int = 0
    logged: Counter[str] = field(default_factory=Counter)
    """Answers that logs hold, by the model that gave them."""

    @property
    def missing(self) -> int:
        """Requests that are still to be asked."""
        return self.requests - self.answered


def look_ahead(
    requests: Iterable[Request], file: AnswersFile | None, parameters: Mapping[str, Any] | None = None
) -> Outlook:
    """Count requests, those with answers, and the tokens of the others.

    Args:
        requests: all of them.
        file: where answers are looked up; None: there are none yet.
        parameters: of every request's body.
    """
    outlook = Outlook()
    for request in requests:
        outlook.requests += 1
        if isinstance(request, LoggedRequest):
            outlook.answered += 1
            outlook.logged[request.answered_by] += 1
        elif file is not None and request.key in file:
            outlook.answered += 1
        else:
            outlook.tokens += prompt_tokens(request, parameters)
    return outlook


def outlook_lines(
    outlook: Outlook, totals: Totals, teacher: Teacher, teach: Teach, price: Price | None, terms: Terms
) -> Iterator[str]:
    """The outlook for a reader.

    Args:
        outlook: what is to be asked.
        totals: what earlier answers came to; their mean length and time are taken for the next.
        teacher, teach: who is asked, and how.
        price: what the teacher costs, if that is known.
        terms: what its terms say.
    """
    where = f" at {base_url(teacher.api)}" if teacher.api else ""
    yield f"teacher   {teacher.model}{where}"
    for number, line in enumerate(terms.lines()):
        yield f"{'terms' if number == 0 else '':<10}{line}"
    yield (
        f"requests  {outlook.missing:,} to ask; {outlook.answered:,} of {outlook.requests:,} have their answers"
    )
    if outlook.logged:
        by = ", ".join(f"{model} {count:,}" for model, count in outlook.logged.most_common(5))
        yield (
            f"logs      hold {outlook.logged.total():,} of these answers, which are taken as they are ({by}); "
            "what the terms of those models say about training is yours to check"
        )
    most = outlook.missing * teach.max_new_tokens
    mean = totals.completion_tokens / totals.answers if totals.answers else None
    if mean is None:
        expected, basis = float(most), "no answer has told yet how long they are"
    else:
        expected, basis = mean * outlook.missing, f"{mean:,.0f} each, the mean of {totals.answers:,} so far"
    yield f"tokens    about {outlook.tokens:,} in prompts; answers about {expected:,.0f}, at most {most:,} ({basis})"
    if teacher.api is None:
        return  # what its time and power cost, the plan says
    yield f"money     {_money(outlook, totals, expected, most, teach, price)}"
    yield f"time      {_time(outlook, totals, expected, teach)}"


def _money(
    outlook: Outlook, totals: Totals, expected: float, most: int, teach: Teach, price: Price | None
) -> str:
    if price is None:
        return f"not known; to have it counted, add the teacher's prices to a file like {BUILT_IN}"
    batch = teach.batch_endpoint
    about = price.cost(outlook.tokens, expected, batch=batch)
    limit = f"; stops at ${teach.max_cost:,.2f} in all" if teach.max_cost is not None else ""
    dated = f", as of {price.as_of}" if price.as_of else ""
    return (
        f"about ${about:,.2f}, at most ${price.cost(outlook.tokens, most, batch=batch):,.2f}, "
        f"beside ${totals.cost:,.2f} spent{limit} "
        f"(${price.input:g} in, ${price.output:g} out a million tokens{' by batch' if batch else ''}{dated})"
    )


def _time(outlook: Outlook, totals: Totals, expected: float, teach: Teach) -> str:
    if not outlook.missing:
        return "none"
    if teach.batch_endpoint:
        return "within a day a batch"
    one = totals.seconds / totals.answers if totals.seconds else expected / outlook.missing / _PACE
    seconds = outlook.missing * one / teach.concurrency
    why = f"{teach.concurrency} at a time, {one:,.1f} s an answer"
    for budget, amount, name in (
        (teach.requests_per_minute, outlook.missing, "requests"),
        (teach.tokens_per_minute, outlook.tokens + expected, "tokens"),
    ):
        if budget and amount / budget * 60 > seconds:
            seconds, why = amount / budget * 60, f"{budget:,} {name} a minute"
    hours, rest = divmod(round(seconds), 3600)
    return f"about {hours}:{rest // 60:02}:{rest % 60:02} ({why})"
