"""A question with its answers, and what becomes of them on their way through the filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.checks import Case, Finding
from stillroom.contracts.records import Answer, Lesson, Prompt, Rejected
from stillroom.lessons.filter.certainty import from_alternatives
from stillroom.lessons.filter.facts import Examined, Sure
from stillroom.lessons.filter.selection import Wrong
from stillroom.lessons.filter.verification import FORMAL
from stillroom.lessons.judging import Judge


@dataclass(frozen=True)
class Group:
    """A question and its answers, each ending with the assistant's turn as the student is to learn it."""

    prompt: Prompt
    answers: list[Answer]
    tools: list[dict[str, Any]] | None = None
    """Declarations of the question's own tools."""
    check: str | None = None
    """How the question's source says that answers are checked."""
    document: str | None = None
    """The text that answers must be drawn from."""


@dataclass(frozen=True)
class Helpers:
    """What others say of the answers, where the recipe asks for it."""

    judge: Judge | None = None
    contrast: Callable[[Sequence[Answer]], list[float | None]] | None = None
    """Of each answer, how much likelier the teacher finds it than a small model does; None where that is not known."""
    sure: Sure = from_alternatives
    """How sure the teacher was of each piece of an answer."""
    reviewed: frozenset[str] = frozenset()
    """Ids of lessons whose facts somebody has looked at and found right."""


ALONE = Helpers()
"""Nobody else is asked."""


@dataclass
class Sifted:
    """What became of one question's answers."""

    lessons: list[Lesson] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    review: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Candidate:
    """An answer that nothing speaks against so far."""

    answer: Answer
    finding: Finding
    facts: Examined | None = None
    rank: float = 0.0
    """Those of the highest rank are kept, of equal ones the first."""
    better_than: list[Candidate] = field(default_factory=list)
    """Those that the judge finds worse."""


@dataclass
class Work:
    """One question on its way through."""

    group: Group
    wrong: list[Wrong] = field(default_factory=list)
    left: list[Candidate] = field(default_factory=list)
    out: Sifted = field(default_factory=Sifted)


def settled(item: Candidate) -> bool:
    """Whether an answer was held against a right one, or run, not only looked at for its form."""
    return item.finding.passed is not None and item.finding.passed not in FORMAL


def declarations(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as declared in OpenAI's form, in which models are shown them; some files have the function alone."""
    found = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()]
    return [dict(tool) for tool in found] or None


def case_of(group: Group, answer: Answer) -> Case:
    *before, last = answer.messages
    return Case(last, before, group.prompt.reference, group.tools, group.check, group.document)
