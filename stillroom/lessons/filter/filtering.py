"""Answers in, lessons out: every answer becomes a lesson, or a reject with its reason.

One question's answers go through together, in this order: is it an answer at all (quality), is it right (verification), do
the samples agree, does it touch the evaluation (contamination), are its facts in doubt, was it there before (duplicates),
is it among the best n. Nothing is kept in memory but a few numbers a lesson.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.checks import UNCHECKED, Case, Finding
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Lesson, Message, Rejected, content_key
from stillroom.lessons.filter.contamination import HeldOut, question_text
from stillroom.lessons.filter.facts import Examined, Facts, review_line
from stillroom.lessons.filter.groups import (
    ALONE,
    Candidate,
    Group,
    Helpers,
    Sifted,
    Work,
    case_of,
    declarations,
    settled,
)
from stillroom.lessons.filter.headroom import Headroom
from stillroom.lessons.filter.quality import objection
from stillroom.lessons.filter.ranking import rank
from stillroom.lessons.filter.selection import Wrong, majority, pairs, preferred, whole
from stillroom.lessons.filter.tally import Tally
from stillroom.lessons.filter.verification import final_answer, slow, verifier
from stillroom.lessons.teach.answered import PaidAnswer
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.stats.minhash import NearDuplicates

_WINDOW = 64
"""Questions that are taken together where a check is a process of its own, or another model is asked."""


class Filtering:
    """The filter with its memory of what went through, and its counts.

    Args:
        rule: the recipe's section.
        base: the folder that paths in it are relative to.
        held_out: the evaluation's questions.
        helpers: what others say of the answers.

    Raises:
        DataError: a file of a check is not usable.
    """

    def __init__(self, rule: Filter, base: Path, held_out: HeldOut, helpers: Helpers = ALONE) -> None:
        self.rule, self.held_out, self.helpers = rule, held_out, helpers
        self.verify = verifier(rule, base)
        self.facts = Facts(helpers.sure) if rule.facts != "none" else None
        self.headroom = Headroom(rule.student_sample) if rule.student_sample else None
        self.tally = Tally(rule)
        self._near = NearDuplicates(rule.near_duplicates) if rule.near_duplicates else None
        self._compared = array("Q")
        self._seen = KeyTable()

    def sift(self, groups: Iterable[Group]) -> Iterator[Sifted]:
        """What becomes of each question's answers, in order.

        Raises:
            Fault: code cannot be confined here, or the user's checker fails.
            TeacherError, ServiceFault: from the judge.
        """
        if not slow(self.rule) and not self.helpers.judge and not self.helpers.contrast:
            for group in groups:
                yield from self._window([group], map)
            return
        iterator = iter(groups)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while window := list(islice(iterator, _WINDOW)):
                yield from self._window(window, pool.map)

    def summary(self) -> dict[str, Any]:
        """The counts, for manifest and card."""
        judge = self.helpers.judge
        found = self.tally.summary() | {"contamination": self.held_out.summary()}
        if self.facts:
            found["facts"] = dict(self.facts.counts)
        if judge:
            found["judge"] = judge.summary()
            found["warnings"] += judge.warnings()
        found["warnings"] += self.held_out.warnings()
        return found

    def _window(self, window: list[Group], spread: Callable[..., Iterator[Finding]]) -> Iterator[Sifted]:
        """Some questions at a time, so that their checks can run side by side and their comparisons in one go."""
        problems = [[objection(answer, self.rule) for answer in group.answers] for group in window]
        cases = [
            None if problem else case_of(group, answer)
            for group, found in zip(window, problems, strict=True)
            for answer, problem in zip(group.answers, found, strict=True)
        ]
        checked = spread(self._check, cases)
        works = [
            self._begin(group, found, [next(checked) for _ in group.answers])
            for group, found in zip(window, problems, strict=True)
        ]
        rank(works, self.helpers)
        for work in works:
            yield self._end(work)

    def _check(self, case: Case | None) -> Finding:
        return UNCHECKED if case is None else self.verify(case)

    def _begin(self, group: Group, problems: list[tuple[str, str] | None], findings: list[Finding]) -> Work:
        """Everything that is said of one question's answers without looking at other questions'."""
        work, tally = Work(group), self.tally
        tally.counts["answers"] += len(group.answers)
        sound = []
        for answer, problem, finding in zip(group.answers, problems, findings, strict=True):
            if problem:
                self._reject(work, answer, *problem)
            else:
                sound.append(Candidate(answer, finding))
        tally.steps["sound"] += len(sound)
        if self.headroom and sound:
            self.headroom.add(case_of(group, sound[0].answer), [item.finding for item in sound])
        if self.facts:
            self._examine(group, sound, self.facts)
        for item in sound:
            if item.finding.reason is None:
                work.left.append(item)
                continue
            self._reject(work, item.answer, item.finding.reason, item.finding.detail)
            if item.answer.finish == "stop":
                work.wrong.append(Wrong(item.answer.messages, item.finding.reason))
        tally.steps["right"] += len(work.left)
        work.left = self._agreeing(work)
        tally.steps["agreed"] += len(work.left)
        work.left = [item for item in work.left if not self._leaks(work, item.answer)]
        tally.steps["clean"] += len(work.left)
        if self.rule.facts in ("drop", "review"):
            work.left = [item for item in work.left if not self._doubtful(work, item)]
            tally.steps["sure"] += len(work.left)
        return work

    def _end(self, work: Work) -> Sifted:
        kept = self._distinct(work)
        out = work.out
        out.lessons = [lesson for _, lesson in kept]
        out.pairs = pairs([lesson for item, lesson in kept if item.finding.passed], work.wrong)
        out.pairs += [
            preferred(lesson, worse.answer.messages) for item, lesson in kept for worse in item.better_than
        ]
        for item, lesson in kept:
            who = item.answer.answered_by if isinstance(item.answer, PaidAnswer) else None
            self.tally.lesson(lesson, _text(lesson.messages), item.finding.passed is not None, who)
            if item.facts and item.facts.doubts and self.rule.facts == "flag":
                out.review.append(review_line(lesson, item.facts))
        self.tally.counts["pairs"] += len(out.pairs)
        return out

    def _agreeing(self, work: Work) -> list[Candidate]:
        """Those that say what most samples say, where the recipe asks for agreement and no right answer settles it."""
        items = work.left
        if not self.rule.agreement or not items or any(settled(item) for item in items):
            return items
        finals = [final_answer(self.rule, item.answer.messages[-1].get("content") or "") for item in items]
        common, share = majority(finals)
        kept = []
        for item, final in zip(items, finals, strict=True):
            detail = f"{share:.0%} say {common[:80]}"
            if share < self.rule.agreement:
                self._reject(work, item.answer, "the samples disagree", detail)
            elif final != common:
                self._reject(work, item.answer, "differs from most samples", detail)
            else:
                kept.append(item)
        return kept

    def _leaks(self, work: Work, answer: Answer) -> bool:
        leak = self.held_out.leak(answer.messages, trained=work.group.prompt.split == "train")
        if leak:
            self._reject(work, answer, "stands in an evaluation file", str(leak))
        return leak is not None

    def _examine(self, group: Group, items: list[Candidate], facts: Facts) -> None:
        """What is in doubt of each answer; those that were found wrong serve as samples of the teacher's mind as well."""
        asked = question_text(group.prompt.messages)
        found = facts.examine([item.answer for item in items], asked, group.document)
        for item, examined in zip(items, found, strict=True):
            if not settled(item):
                item.facts = examined

    def _doubtful(self, work: Work, item: Candidate) -> bool:
        if not item.facts or not item.facts.doubts:
            return False
        if content_key(item.answer.messages) in self.helpers.reviewed:
            item.facts = Examined(item.facts.claims, bases=item.facts.bases)
            return False
        if self.rule.facts == "review":
            lesson = self._lesson(work.group, item)
            work.out.review.append(review_line(lesson, item.facts))
            self._reject(work, item.answer, "held for review", "; ".join(item.facts.doubts)[:200])
        else:
            self._reject(work, item.answer, "its facts are in doubt", "; ".join(item.facts.doubts)[:200])
        return True

    def _distinct(self, work: Work) -> list[tuple[Candidate, Lesson]]:
        kept: list[tuple[Candidate, Lesson]] = []
        here: set[str] = set()
        for item in sorted(work.left, key=lambda item: -item.rank):
            answer = item.answer
            text = whole(answer.messages[-1])
            if text in here or self._seen.get(content_key(answer.messages)) is not None:
                self._reject(work, answer, "the same answer again")
            elif self.rule.keep is not None and len(kept) >= self.rule.keep:
                self._reject(work, answer, "more than were to be kept", f"filter.keep is {self.rule.keep}")
            elif (other := self._repeated(answer.messages)) is not None:
                self._reject(work, answer, "nearly the same as another", f"lesson {other:016x}...")
            else:
                here.add(text)
                lesson = self._lesson(work.group, item)
                self._seen.put(lesson.id, 0)
                kept.append((item, lesson))
        return kept

    def _repeated(self, messages: list[Message]) -> int | None:
        """The number of the lesson that a conversation nearly repeats, if there is one."""
        if self._near is None:
            return None
        found = self._near.add(_text(messages))
        self._compared.append(_number(content_key(messages)))
        return None if found is None else self._compared[found]

    def _lesson(self, group: Group, item: Candidate) -> Lesson:
        prompt = group.prompt
        checked = {item.finding.passed: True} if item.finding.passed else {}
        facts = {"facts": not item.facts.doubts} if item.facts and item.facts.bases else {}
        return Lesson(
            id=content_key(item.answer.messages),
            messages=item.answer.messages,
            split=prompt.split,
            source=prompt.source,
            complete=item.answer.finish == "stop",
            checks=checked | facts,
            tools=declarations([tool for tool in group.tools or () if isinstance(tool, dict)]),
        )

    def _reject(self, work: Work, answer: Answer, reason: str, detail: str = "") -> None:
        self.tally.reasons[reason] += 1
        work.out.rejected.append(Rejected(work.group.prompt.id, answer.messages, reason, detail))


def _number(key: str) -> int:
    """A key's first 64 bits: enough to name a lesson by."""
    return int(key[:16], 16)


def _text(messages: list[Message]) -> str:
    """What near-duplicates are found by: question and answer, without the system prompt that all share."""
    return "\n".join(
        str(message.get("content") or "") for message in messages if message.get("role") != "system"
    )
