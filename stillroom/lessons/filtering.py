"""Answers in, lessons out: every answer becomes a lesson, or a reject with its reason.

One question's answers go through together, in this order: is it an answer at all (quality), is it right (verification), do
the samples agree, does it touch the evaluation (contamination), was it there before (duplicates), is it among the first
n. Nothing is kept in memory but a few numbers a lesson.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Lesson, Message, Prompt, Rejected, content_key
from stillroom.lessons.contamination import HeldOut
from stillroom.lessons.diversity import Reservoir, diversity
from stillroom.lessons.keyed import KeyTable
from stillroom.lessons.quality import objection
from stillroom.lessons.selection import Wrong, majority, pairs, whole
from stillroom.lessons.verification import UNCHECKED, Case, Finding, final_answer, slow, verifier
from stillroom.stats.minhash import NearDuplicates

FEWEST = 500
"""Under this many lessons a student memorises examples instead of learning the task."""
HARDLY = 0.15
"""Share of different runs of three words in 2,000 lessons under which they hardly differ."""
_WINDOW = 64
"""Questions whose answers are checked at a time, where a check is a process of its own."""


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


STEPS = ("sound", "right", "agreed", "clean", "lessons")
"""After each of these some answers are left; the card says in words what they are."""


@dataclass
class Sifted:
    """What became of one question's answers."""

    lessons: list[Lesson] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)


class Filtering:
    """The filter with its memory of what went through, and its counts.

    Args:
        rule: the recipe's section.
        base: the folder that paths in it are relative to.
        held_out: the evaluation's questions.

    Raises:
        DataError: a file of a check is not usable.
    """

    def __init__(self, rule: Filter, base: Path, held_out: HeldOut) -> None:
        self.rule, self.held_out = rule, held_out
        self._verify = verifier(rule, base)
        self._near = NearDuplicates(rule.near_duplicates) if rule.near_duplicates else None
        self._compared = array("Q")
        self._seen = KeyTable()
        self._sample = Reservoir()
        self.counts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter(dict.fromkeys(STEPS, 0))
        self.reasons: Counter[str] = Counter()

    def sift(self, groups: Iterable[Group]) -> Iterator[Sifted]:
        """What becomes of each question's answers, in order.

        Raises:
            Fault: code cannot be confined here, or the user's checker fails.
        """
        if not slow(self.rule):
            for group in groups:
                yield from self._window([group], map)
            return
        iterator = iter(groups)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while window := list(islice(iterator, _WINDOW)):
                yield from self._window(window, pool.map)

    def _window(self, window: list[Group], spread: Callable[..., Iterator[Finding]]) -> Iterator[Sifted]:
        """Some questions at a time, so that their checks can run side by side."""
        problems = [[objection(answer, self.rule) for answer in group.answers] for group in window]
        cases = [
            None if problem else _case(group, answer)
            for group, found in zip(window, problems, strict=True)
            for answer, problem in zip(group.answers, found, strict=True)
        ]
        checked = spread(self._check, cases)
        for group, found in zip(window, problems, strict=True):
            yield self._one(group, found, [next(checked) for _ in group.answers])

    def summary(self) -> dict[str, Any]:
        """The counts, for manifest and card."""
        figures = diversity(self._sample.texts)
        return {
            "lessons": self.counts["train"] + self.counts["tune"],
            "rejected": self.reasons.total(),
            "reasons": dict(self.reasons),
            **self.counts,
            "left after": {"answers": self.counts["answers"], **self.steps},
            "contamination": self.held_out.summary(),
            "diversity": figures,
            "warnings": self._warnings(figures),
        }

    def _warnings(self, figures: dict[str, float | int]) -> list[str]:
        """What the reader should know before training on these lessons."""
        said = []
        lessons = self.counts["train"]
        if lessons < FEWEST:
            said.append(
                f"only {lessons} lessons: under {FEWEST} a student memorises examples rather than learns the task"
            )
        share = figures.get("distinct-3", 1.0)
        if figures["sampled"] >= FEWEST and share < HARDLY:
            said.append(
                f"hardly diverse: of the runs of three words in {figures['sampled']} lessons only {share:.0%} are "
                "different ones; ask more varied questions"
            )
        unchecked = lessons + self.counts["tune"] - self.counts["checked"]
        if self.rule.verify != "none" and unchecked:
            said.append(f"{unchecked} lessons had no right answer to be checked against")
        return said

    def _check(self, case: Case | None) -> Finding:
        return UNCHECKED if case is None else self._verify(case)

    def _one(self, group: Group, problems: list[tuple[str, str] | None], findings: list[Finding]) -> Sifted:
        sifted, prompt = Sifted(), group.prompt
        wrong: list[Wrong] = []
        sound: list[tuple[Answer, Finding]] = []
        self.counts["answers"] += len(group.answers)
        for answer, problem, finding in zip(group.answers, problems, findings, strict=True):
            if problem:
                self._reject(sifted, prompt, answer, *problem)
                continue
            self.steps["sound"] += 1
            if finding.reason is None:
                sound.append((answer, finding))
                continue
            self._reject(sifted, prompt, answer, finding.reason, finding.detail)
            if answer.finish == "stop":
                wrong.append(Wrong(answer.messages, finding.reason))
        self.steps["right"] += len(sound)
        agreed = self._agreeing(sifted, prompt, sound)
        self.steps["agreed"] += len(agreed)
        clean = self._clean(sifted, prompt, agreed)
        self.steps["clean"] += len(clean)
        lessons = self._distinct(sifted, prompt, clean)
        self.steps["lessons"] += len(lessons)
        for lesson in lessons:
            self.counts[lesson.split] += 1
            self.counts["checked"] += bool(lesson.checks)
            self._sample.add(_text(lesson.messages))
        sifted.lessons = lessons
        sifted.pairs = pairs([lesson for lesson in lessons if lesson.checks], wrong)
        self.counts["pairs"] += len(sifted.pairs)
        return sifted

    def _agreeing(
        self, sifted: Sifted, prompt: Prompt, sound: list[tuple[Answer, Finding]]
    ) -> list[tuple[Answer, Finding]]:
        """Those that say what most samples say, where the recipe asks for agreement; checked answers need none."""
        if not self.rule.agreement or not sound or any(finding.passed for _, finding in sound):
            return sound
        finals = [final_answer(self.rule, answer.messages[-1].get("content") or "") for answer, _ in sound]
        common, share = majority(finals)
        kept = []
        for item, final in zip(sound, finals, strict=True):
            if share < self.rule.agreement:
                self._reject(
                    sifted, prompt, item[0], "the samples disagree", f"{share:.0%} say {common[:80]}"
                )
            elif final != common:
                self._reject(
                    sifted, prompt, item[0], "differs from most samples", f"{share:.0%} say {common[:80]}"
                )
            else:
                kept.append(item)
        return kept

    def _clean(
        self, sifted: Sifted, prompt: Prompt, items: list[tuple[Answer, Finding]]
    ) -> list[tuple[Answer, Finding]]:
        kept = []
        for item in items:
            if leak := self.held_out.leak(item[0].messages):
                self._reject(sifted, prompt, item[0], "stands in an evaluation file", f"{leak[0]}: {leak[1]}")
            else:
                kept.append(item)
        return kept

    def _distinct(self, sifted: Sifted, prompt: Prompt, items: list[tuple[Answer, Finding]]) -> list[Lesson]:
        lessons: list[Lesson] = []
        here: set[str] = set()
        for answer, finding in items:
            text = whole(answer.messages[-1])
            if text in here or self._seen.get(content_key(answer.messages)) is not None:
                self._reject(sifted, prompt, answer, "the same answer again")
            elif self.rule.keep is not None and len(lessons) >= self.rule.keep:
                self._reject(
                    sifted, prompt, answer, "more than were to be kept", f"filter.keep is {self.rule.keep}"
                )
            elif (other := self._repeated(answer.messages)) is not None:
                self._reject(sifted, prompt, answer, "nearly the same as another", f"lesson {other:016x}...")
            else:
                here.add(text)
                lessons.append(self._lesson(prompt, answer, finding))
        return lessons

    def _repeated(self, messages: list[Message]) -> int | None:
        """The number of the lesson that a conversation nearly repeats, if there is one."""
        if self._near is None:
            return None
        found = self._near.add(_text(messages))
        self._compared.append(_number(content_key(messages)))
        return None if found is None else self._compared[found]

    def _lesson(self, prompt: Prompt, answer: Answer, finding: Finding) -> Lesson:
        key = content_key(answer.messages)
        self._seen.put(key, 0)
        return Lesson(
            id=key,
            messages=answer.messages,
            split=prompt.split,
            source=prompt.source,
            complete=answer.finish == "stop",
            checks={finding.passed: True} if finding.passed else {},
        )

    def _reject(self, sifted: Sifted, prompt: Prompt, answer: Answer, reason: str, detail: str = "") -> None:
        self.reasons[reason] += 1
        sifted.rejected.append(Rejected(prompt.id, answer.messages, reason, detail))


def _case(group: Group, answer: Answer) -> Case:
    *before, last = answer.messages
    return Case(last, before, group.prompt.reference, group.tools, group.check, group.document)


def _number(key: str) -> int:
    """A key's first 64 bits: enough to name a lesson by."""
    return int(key[:16], 16)


def _text(messages: list[Message]) -> str:
    """What near-duplicates are found by: question and answer, without the system prompt that all share."""
    return "\n".join(
        str(message.get("content") or "") for message in messages if message.get("role") != "system"
    )
