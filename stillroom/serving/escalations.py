"""What became of the questions: how many were sent on, whether they still look as they did where the rule was proved."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import StorageFault
from stillroom.contracts.files import SyncedLines
from stillroom.stats import binomial_at_most

_WINDOW = 500
"""Questions that are held against what is usual; fewer tell nothing of it."""
_DRIFTED = 0.25
"""Population stability index from which a distribution is commonly called another one."""
_FEWEST = 200
_SURE = 0.001


@dataclass
class Escalations:
    """Counts of a cascade at work, a warning when its questions drift, and the kept questions.

    Args:
        keep: a JSONL log of the questions that were sent on, with the answers that did not stream; `prompts` reads it.
        deciles: of the scores where the rule was proved, 11 of them; empty: nothing is said of drift.
        allowed: the promised bound on kept answers that are worse; None: there is none.
        warn: receives each line that whoever runs the server should see.
    """

    keep: Path | None = None
    deciles: Sequence[float] = ()
    allowed: float | None = None
    warn: Callable[[str], None] = lambda _: None
    counts: Counter[str] = field(default_factory=Counter)
    """Answers by who gave them: `student`, `frontier`, `fallback` for the student in the other's place; questions that the
    other did not answer, `failed`; of the kept answers that were checked, which it `agrees` with and where it `differs`."""
    _today: tuple[int, int] = (0, 0)
    _scores: deque[float | None] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _said: set[str] = field(default_factory=set)

    def on(self, day: int) -> int:
        """How many questions were sent on that day."""
        return self._today[1] if self._today[0] == day else 0

    def sent(self, day: int, asked: dict[str, Any], reply: dict[str, Any] | None) -> None:
        """A question was sent on and is being answered; `reply` None where the answer streams past."""
        self._today = (day, self.on(day) + 1)
        self._said.discard("failed")
        if self.keep is None:
            return
        line: dict[str, Any] = {"time": round(time.time(), 3), "request": asked}
        if reply is not None:
            line["response"] = reply
        try:
            with SyncedLines(self.keep) as lines:
                lines.append([line])
        except StorageFault as error:
            self._once("keep", f"questions are no longer kept: {error}")

    def failed(self, why: str) -> None:
        """The frontier model did not answer; said once until it does again."""
        self.counts["failed"] += 1
        self._once("failed", f"{why}; the student's answers stand in")

    def answered(self, who: str, fallback: bool) -> None:
        """An answer is given."""
        self.counts["fallback" if fallback else who] += 1

    def checked(self, agrees: bool) -> None:
        """A kept answer was held against the frontier model's, which passes for right as it did where none was known."""
        self.counts["agrees" if agrees else "differs"] += 1
        differing = self.counts["differs"]
        total = differing + self.counts["agrees"]
        if not agrees and self.allowed is not None:
            by_chance = 1 - binomial_at_most(differing - 1, total, self.allowed)
            # Looked at again with every check, so that one in twenty would come by itself sooner or later.
            if by_chance < _SURE:
                self._once(
                    "checked",
                    f"of {total:,} kept answers that were checked {differing:,} differ from the other model's, and at most "
                    f"{self.allowed:.1%} were to be worse: the promise does not hold for what is asked now",
                )

    def scored(self, score: float | None) -> None:
        """An answer of the student has this score; None for a question unlike all lessons."""
        self._scores.append(score)
        if self.drift > _DRIFTED:
            self._once(
                "drift",
                f"the last {len(self._scores)} questions are not like those that the cascade was proved on (stability index "
                f"{self.drift:.2f}): fit it again on what is asked now, or its promise may not hold",
            )

    @property
    def drift(self) -> float:
        """Population stability index of the latest scores against the deciles; 0 while there are too few."""
        if len(self.deciles) < 2 or len(self._scores) < _FEWEST:
            return 0.0
        inner = list(self.deciles)[1:-1]
        bins = len(inner) + 1
        found = Counter(bins if score is None else _bin(score, inner) for score in self._scores)
        # Strange questions were one in 200; half a question in each bin keeps the logarithms finite.
        usual = [*([0.995 / bins] * bins), 0.005]
        total = len(self._scores) + 0.5 * len(usual)
        shares = [(found[place] + 0.5) / total for place in range(len(usual))]
        return sum(
            (share - known) * math.log(share / known) for share, known in zip(shares, usual, strict=True)
        )

    def _once(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.warn(text)


def _bin(score: float, inner: Sequence[float]) -> int:
    return sum(score > edge for edge in inner)
