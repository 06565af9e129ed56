"""Which statements of an answer are in doubt: not in the document, not in other samples, or unlikely to the teacher.

What a model knows it says again; what it makes up differs from sample to sample (Manakul et al., SelfCheckGPT, arXiv
2303.08896). Only names, dates and numbers are compared, by their form: a false statement without any is not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Lesson, to_line
from stillroom.lessons.filter.claims import Claim, Stated

AGREED = 0.5
"""Share of a question's other samples that must state the same, or the statement is in doubt."""
SURE = 0.5
"""Probability that the teacher must have given every token of a statement, or it is in doubt."""

Basis = Literal["document", "samples", "probabilities"]
Sure = Callable[[Answer], "Sequence[tuple[str, float]] | None"]
"""The pieces of an answer's text with the probability that the teacher gave each, or None where it is not known."""


@dataclass(frozen=True)
class Examined:
    """What was found out about one answer."""

    claims: int
    """Statements that the question does not make itself."""
    doubts: list[str] = field(default_factory=list)
    bases: tuple[Basis, ...] = ()
    """What it was held against; empty where there was nothing."""


class Facts:
    """Holds answers against documents, other samples and the teacher's own certainty, and counts.

    Args:
        sure: tells how sure the teacher was of each piece of an answer, where that is known.
    """

    def __init__(self, sure: Sure) -> None:
        self._sure = sure
        self.counts: Counter[str] = Counter()

    def examine(self, answers: Sequence[Answer], asked: str, document: str | None) -> list[Examined]:
        """What is in doubt of each answer to one question.

        Args:
            answers: the question's samples; the more, the better a made-up statement stands out.
            asked: the question; what it says itself is no claim of the answer's.
            document: the text that the answers are drawn from, where there is one.
        """
        texts = [Stated(str(answer.messages[-1].get("content") or "")) for answer in answers]
        question, source = Stated(asked), Stated(document) if document else None
        found = []
        for number, (answer, text) in enumerate(zip(answers, texts, strict=True)):
            claims = [claim for claim in text.claims if not question.says(claim)]
            pieces = self._sure(answer)
            others = texts[:number] + texts[number + 1 :]
            doubts = [] if source is None else list(_undocumented(claims, source))
            doubts += _alone(claims, others)
            doubts += [] if pieces is None else _unsure(claims, text.text, pieces)
            known: dict[Basis, bool] = {
                "document": source is not None,
                "samples": bool(others),
                "probabilities": pieces is not None,
            }
            bases = tuple(basis for basis, there in known.items() if there)
            self.counts["answers"] += 1
            self.counts["examined"] += bool(bases)
            self.counts["claims"] += len(claims) if bases else 0
            self.counts["in doubt"] += bool(doubts)
            self.counts.update(bases)
            found.append(Examined(len(claims), doubts, bases))
        return found


def review_line(lesson: Lesson, examined: Examined) -> dict[str, Any]:
    """A lesson whose facts somebody should look at: a line of review.jsonl."""
    return to_line(lesson) | {"doubts": examined.doubts, "held against": list(examined.bases)}


def reviewed_ids(rule: Filter, base: Path) -> frozenset[str]:
    """The ids of the lessons that somebody has looked at and left in a copy of review.jsonl.

    Raises:
        DataError: the file is missing, or a line has no id.
    """
    if not rule.reviewed:
        return frozenset()
    path = (base / Path(rule.reviewed).expanduser()).resolve()
    ids = [line.get("id") for line in read_lines(path)]
    if not all(isinstance(name, str) for name in ids):
        raise DataError(f"{path}, line {ids.index(None) + 1} has no id", expected="lines of a review.jsonl")
    return frozenset(map(str, ids))


def _undocumented(claims: Sequence[Claim], source: Stated) -> Iterator[str]:
    for claim in claims:
        if not source.says(claim):
            yield f"{claim.kind} {claim.text}: not in the document"


def _alone(claims: Sequence[Claim], others: Sequence[Stated]) -> Iterator[str]:
    if not others:
        return
    for claim in claims:
        saying = sum(other.says(claim) for other in others)
        if saying < AGREED * len(others):
            yield f"{claim.kind} {claim.text}: in {saying} of {len(others)} other samples"


def _unsure(claims: Sequence[Claim], text: str, pieces: Sequence[tuple[str, float]]) -> Iterator[str]:
    places: list[tuple[int, int, float]] = []
    at = 0
    for piece, probability in pieces:
        places.append((at, at + len(piece), probability))
        at += len(piece)
    for claim in claims:
        touching = [p for start, end, p in places if start < claim.end and end > claim.start]
        if touching and (least := min(touching)) < SURE:
            yield f"{claim.kind} {claim.text}: the teacher gave it {least:.0%}"
