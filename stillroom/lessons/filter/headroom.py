"""Does the teacher know more than the student does before it has learned anything?

Where it hardly does, there is hardly anything to learn. Both are held against the same right answers: a sample of the
questions that were checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.checks import Case, Finding, Verifier
from stillroom.contracts.conversations import with_system
from stillroom.contracts.records import Answerer, Message, Request, Sampling, content_key
from stillroom.lessons.expand.diversity import Reservoir
from stillroom.lessons.filter.groups import declarations
from stillroom.models.chat_completions import ChatRequest
from stillroom.stats.intervals import Interval, paired_bootstrap_difference

HARDLY = 0.05
"""A lead of fewer right answers than this share is hardly one."""


@dataclass(frozen=True)
class Lead:
    """How often teacher and student are right on the same questions."""

    questions: int
    teacher: float
    student: float
    difference: Interval

    @property
    def warning(self) -> str | None:
        """What the reader should know, if the teacher is hardly better."""
        lead = self.difference
        if lead.value >= HARDLY and lead.low > 0:
            return None
        return (
            f"hardly anything to learn: of {self.questions} checked questions the teacher has {self.teacher:.0%} right, the "
            f"student before its training {self.student:.0%} (the lead lies between {lead.low:+.0%} and {lead.high:+.0%}); "
            "take a better teacher or harder questions"
        )

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        low, high = (round(bound, 4) for bound in self.difference[1:])
        return {
            "questions": self.questions,
            "teacher": round(self.teacher, 4),
            "student": round(self.student, 4),
            "lead at least": low,
            "lead at most": high,
        }


class Headroom:
    """Remembers a sample of the checked questions with the teacher's verdicts.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._sample = Reservoir[tuple[Case, float]](size)

    def add(self, case: Case, findings: Sequence[Finding]) -> None:
        """A question, by the case of any of its answers, and what was found of all of them."""
        checked = [finding for finding in findings if finding.passed or finding.reason]
        if checked:
            self._sample.add((case, sum(bool(finding.passed) for finding in checked) / len(checked)))

    def compare(
        self, student: Answerer, verify: Verifier, *, system: str | None, max_new_tokens: int
    ) -> Lead | None:
        """Ask the student the same questions, greedily; None where nothing was checked.

        Args:
            student: the student as it is before training.
            verify: the check that the teacher's answers went through.
            system: the teacher's system prompt.
            max_new_tokens: longest answer.

        Raises:
            ModelError, TeacherError: from the student.
        """
        cases = {str(number): item for number, item in enumerate(self._sample.texts)}
        if not cases:
            return None
        requests = (
            _request(key, with_system(list(case.before), system), declarations(case.tools))
            for key, (case, _) in cases.items()
        )
        right = dict(_verdicts(student, verify, requests, cases, max_new_tokens))
        teacher = [cases[key][1] for key in right]
        found = [float(passed) for passed in right.values()]
        lead = paired_bootstrap_difference(teacher, found)
        return Lead(len(found), sum(teacher) / len(found), sum(found) / len(found), lead)


def _request(key: str, messages: list[Message], tools: list[dict[str, Any]] | None) -> Request:
    """A question, with its tools where it has any."""
    if tools is None:
        return Request(content_key(key), messages, prompt=key)
    return ChatRequest(content_key(key), messages, prompt=key, parameters={"tools": tools})


def _verdicts(
    student: Answerer,
    verify: Verifier,
    requests: Iterable[Request],
    cases: dict[str, tuple[Case, float]],
    max_new_tokens: int,
) -> Iterator[tuple[str, bool]]:
    for request, reply in student.answer(requests, Sampling(max_new_tokens=max_new_tokens)):
        case = cases[request.prompt][0]
        own = replace(case, answer={"role": "assistant", "content": reply.text})
        yield request.prompt, verify(own).passed is not None
