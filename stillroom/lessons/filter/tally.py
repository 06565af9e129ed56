"""What the filter counts, and what the reader should know of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Lesson
from stillroom.lessons.expand.diversity import Reservoir, diversity

FEWEST = 500
"""Under this many lessons a student memorises examples instead of learning the task."""
HARDLY = 0.15
"""Share of different runs of three words in 2,000 lessons under which they hardly differ."""
THE_TEACHER = "the teacher"
_COUNTS = ("answers", "train", "tune", "checked", "pairs")
_STEPS = ("sound", "right", "agreed", "clean", "sure", "lessons")


class Tally:
    """The filter's counts.

    Args:
        rule: the recipe's section.
    """

    def __init__(self, rule: Filter) -> None:
        self.rule = rule
        steps = (step for step in _STEPS if step != "sure" or rule.facts in ("drop", "review"))
        self.counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        self.steps: Counter[str] = Counter(dict.fromkeys(steps, 0))
        """After each of these some answers are left; the card says in words what they are."""
        self.reasons: Counter[str] = Counter()
        self._sample = Reservoir[str]()
        self._by: Counter[str | None] = Counter()

    def lesson(self, lesson: Lesson, text: str, checked: bool, answered_by: str | None = None) -> None:
        """One more lesson.

        Args:
            lesson: it.
            text: what its diversity is judged by.
            checked: whether it passed a check.
            answered_by: who answered, where the teacher was not asked.
        """
        self.steps["lessons"] += 1
        self.counts[lesson.split] += 1
        self.counts["checked"] += checked
        self._sample.add(text)
        self._by[answered_by] += 1

    def summary(self) -> dict[str, Any]:
        """The counts, with their warnings."""
        figures = diversity(self._sample.texts)
        return {
            "lessons": self.counts["train"] + self.counts["tune"],
            "rejected": self.reasons.total(),
            "reasons": dict(self.reasons),
            **self.counts,
            "left after": {"answers": self.counts["answers"], **self.steps},
            **({"answered by": self._answered_by()} if self._by.keys() - {None} else {}),
            "diversity": figures,
            "warnings": self._warnings(figures),
        }

    def _answered_by(self) -> dict[str, int]:
        """Lessons by who answered, those taken over from logs and files by the names there."""
        taken = sorted((count, who) for who, count in self._by.items() if who is not None)
        asked = self._by[None]
        return {**({THE_TEACHER: asked} if asked else {}), **{who: count for count, who in reversed(taken)}}

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
