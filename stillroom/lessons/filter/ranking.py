"""Which of a question's answers come first: those that a judge prefers, and those that only this teacher gives."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.contracts.records import Answer, Message
from stillroom.lessons.filter.groups import Candidate, Helpers, Work, settled
from stillroom.lessons.filter.selection import whole
from stillroom.lessons.judging import Duel, Judge


def rank(works: Sequence[Work], helpers: Helpers) -> None:
    """Set the ranks of what is left of some questions' answers, all comparisons in one go."""
    if helpers.judge:
        _probe(works, helpers.judge)
        _compare([work.left for work in works if not any(map(settled, work.left))], helpers.judge)
    if helpers.contrast:
        left = [item for work in works for item in work.left]
        for item, score in zip(left, helpers.contrast([item.answer for item in left]), strict=True):
            item.rank += score or 0.0


def _probe(works: Sequence[Work], judge: Judge) -> None:
    """Try the judge where a right and a wrong answer are known."""
    known = [
        _duel(item.answer, work.wrong[0].messages[-1])
        for work in works
        if work.wrong
        for item in work.left[:1]
        if settled(item)
    ]
    judge.probe(known)


def _compare(questions: Sequence[Sequence[Candidate]], judge: Judge) -> None:
    """Rank the answers of each question by how often the judge prefers them."""
    meetings = [
        (items[a], items[b])
        for items in questions
        for a, b in ring([item.answer.messages[-1] for item in items])
    ]
    verdicts = judge.compare([_duel(one.answer, other.answer.messages[-1]) for one, other in meetings])
    for (one, other), verdict in zip(meetings, verdicts, strict=True):
        if verdict:
            one.rank += verdict
            other.rank -= verdict
            winner, loser = (one, other) if verdict > 0 else (other, one)
            winner.better_than.append(loser)


def ring(answers: Sequence[Message]) -> list[tuple[int, int]]:
    """Which of several answers meet: each the next one, the last the first; equal ones do not."""
    count = len(answers)
    meetings = [(at, (at + 1) % count) for at in range(count if count > 2 else count - 1)]
    return [(a, b) for a, b in meetings if whole(answers[a]) != whole(answers[b])]


def _duel(answer: Answer, other: dict[str, object]) -> Duel:
    *before, last = answer.messages
    return Duel(before, last, other)
