"""Blind votes between two models' answers: kept on disk as they come, summed up with intervals."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stillroom.contracts.files import SyncedLines
from stillroom.stats import mcnemar_exact, wilson

CHOICES = ("first", "second", "tie", "neither")
"""What a vote may say: which answer is better, that they are as good, that both are bad."""


class Votes:
    """A file of votes, a line each.

    Args:
        path: the JSONL file; it and its folder are made with the first vote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, models: tuple[str, str], choice: str, prompt: str, answers: tuple[str, str]) -> None:
        """Keep a vote; when this returns it is on disk.

        Raises:
            StorageFault: it cannot be written.
        """
        vote = {
            "time": round(time.time(), 3),
            "models": list(models),
            "choice": choice,
            "prompt": prompt,
            "answers": list(answers),
        }
        with SyncedLines(self.path) as lines:
            lines.append([vote])

    def summary(self) -> list[dict[str, Any]]:
        """`summary` of what is kept."""
        if not self.path.is_file():
            return []
        return summary(map(json.loads, self.path.read_text(encoding="utf-8").splitlines()))


def summary(votes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was said of each pair of models, whichever of them stood first.

    Returns:
        For each pair, in the order of the alphabet: `models`, `votes`, `wins` of the first and of the second, `ties`,
        `neither`; `share` of the first's among the wins with its 95 % interval `low`, `high` (Wilson), and `p`, the exact
        two-sided sign test (None for all four where nobody won).
    """
    pairs: dict[tuple[str, str], Counter[str]] = {}
    for vote in votes:
        first, second = sorted(vote["models"])
        choice = vote["choice"]
        if vote["models"] != [first, second]:
            choice = {"first": "second", "second": "first"}.get(choice, choice)
        pairs.setdefault((first, second), Counter())[choice] += 1
    return [_row(models, counts) for models, counts in sorted(pairs.items())]


def _row(models: tuple[str, str], counts: Counter[str]) -> dict[str, Any]:
    wins = [counts["first"], counts["second"]]
    found = wilson(wins[0], sum(wins)) if any(wins) else None
    return {
        "models": list(models),
        "votes": counts.total(),
        "wins": wins,
        "ties": counts["tie"],
        "neither": counts["neither"],
        "share": found and found.value,
        "low": found and found.low,
        "high": found and found.high,
        "p": mcnemar_exact(*wins) if found else None,
    }
