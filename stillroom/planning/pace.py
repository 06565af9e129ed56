"""How quick this machine has been: each stage's work and seconds, kept in its run for the next plan."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stillroom.contracts.files import write_json
from stillroom.contracts.runfolder import Run
from stillroom.planning.capturing import ANSWER_TOKENS, QUESTION_TOKENS
from stillroom.planning.machine import cores
from stillroom.planning.shapes import shapes_of

FILE = "pace.json"
TIMED = ("teach", "distil", "quantise")
"""Stages whose work can be told before they run; the others' depends on what they find."""


@dataclass(frozen=True)
class Pace:
    """What one stage took: its work in parameters times tokens (or times files), and seconds.

    `expected` seconds are those that earlier runs made of this work, None where there were none.
    """

    machine: str
    work: float
    seconds: float
    expected: float | None = None


@dataclass(frozen=True)
class Expected:
    """Seconds of a stage or bytes of a training, as runs on this machine have it: the middle one, the least, the most."""

    value: float
    low: float
    high: float
    runs: int


def work_of(run: Run, stage: str, answers: int, length: float) -> float | None:
    """The work of a stage, None where it is not known.

    A local teacher's answers are written token by token, each through all of its weights; a step reads the tokens of its
    lessons through the student, once for each model that is trained; a file holds every weight.

    Args:
        run: its run.
        stage: one of `TIMED`.
        answers: what the teacher gives, or the lessons.
        length: tokens of an answer.
    """
    recipe = run.recipe
    teacher, student = shapes_of(run)
    if stage == "teach":
        return teacher.parameters * answers * length if teacher and not recipe.teacher.api else None
    if student is None or recipe.classify:
        return None
    if stage == "quantise":
        return float(student.parameters * (1 + len(recipe.files)))
    trained = 1 + sum(name != "before" for name in recipe.baselines)
    lessons = recipe.distil.steps or recipe.distil.epochs * answers / recipe.distil.batch_size
    lessons *= recipe.distil.batch_size
    again = 4 / 3 if recipe.distil.gradient_checkpointing else 1  # forward, backward twice, and forward again
    tokens = lessons * (QUESTION_TOKENS + length) * trained * again
    live = teacher.parameters / 3 if teacher and recipe.distil.teacher == "live" else 0
    return tokens * (student.parameters + live)


def remember(run: Run, stage: str, counts: Mapping[str, Any], seconds: float) -> None:
    """Keep what a stage took that ran from its beginning to its end, in the run's pace.json."""
    answers, length = _done(run, stage, counts)
    work = work_of(run, stage, answers, length) if stage in TIMED and answers else None
    if not work:
        return
    before = expected(run, stage, work)
    found = _read(run.path)
    found[stage] = asdict(
        Pace(_machine(), work, round(seconds, 2), round(before.value, 2) if before else None)
    )
    write_json(run.path / FILE, found)


def expected(run: Run, stage: str, work: float) -> Expected | None:
    """What so much work takes, by the runs that lie beside this one and were made on this machine."""
    rates = [
        pace.seconds / pace.work
        for folder in sorted(run.path.parent.glob(f"*/{FILE}"))
        for name, pace in _paces(folder.parent)
        if name == stage and pace.machine == _machine() and pace.work
    ]
    if not rates:
        return None
    return Expected(work * median(rates), work * min(rates), work * max(rates), len(rates))


def made_here(folder: Path, stage: str) -> bool:
    """Whether a run's stage ran on this machine."""
    return any(name == stage and pace.machine == _machine() for name, pace in _paces(folder))


def _done(run: Run, stage: str, counts: Mapping[str, Any]) -> tuple[int, float]:
    """Answers that a stage worked on, and the tokens of one, as its counts have it."""
    if stage == "teach":
        given = counts.get("answers", 0) - counts.get("from logs", 0) - counts.get("answered before", 0)
        tokens = counts.get("completion tokens") or ANSWER_TOKENS * given
        return given, tokens / max(given, 1)
    if stage == "distil":
        lessons = counts.get("lessons", 0)
        # The tokens are those of question and answer together.
        return lessons, max(0.0, counts.get("tokens", 0) / max(lessons, 1) - QUESTION_TOKENS)
    return 1, 0.0


def _paces(folder: Path) -> Iterator[tuple[str, Pace]]:
    for name, fields in _read(folder).items():
        try:
            yield name, Pace(**fields)
        except TypeError:  # of another version
            continue


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    return f"{platform.node()}, {cores()} cores"
