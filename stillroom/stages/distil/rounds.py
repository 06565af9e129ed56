"""Training in rounds: the student writes, the teacher scores that, the student trains on, with one optimiser throughout.

distil/rounds/NN holds what a round was made of, distil/rounds/signals the teacher's view of all of it, rounds.json what
came of each. A killed run goes on with the round that it was at. Where several processes train, the first of them alone
writes, scores and keeps account, and the others read what it left.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.contracts.child import run_child
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_json, read_lines, write_json, write_lines
from stillroom.contracts.records import Lesson
from stillroom.lessons.filter.verification import final_answer
from stillroom.lessons.questions import answered_questions, question_line
from stillroom.models.writing import write_apart, written_rows
from stillroom.ranks import once
from stillroom.stages.distil.stage import Apprentice, DistilStage
from stillroom.training.batches import JoinedRows, MemoryRows, RowSource
from stillroom.training.bookrows import BookRows
from stillroom.training.fitting import last_figures
from stillroom.training.rounds import Calendar, OwnWriting

_SCORE = "stillroom.stages.distil.scoring:score"
_HELD_OUT = 200
"""Most lessons of the tune split that a round's student is scored on."""


def in_rounds(stage: DistilStage, apprentice: Apprentice, checkpoints: Path) -> dict[str, Any]:
    """Train the student in the rounds that the recipe asks for, and leave it in its folder; returns its counts."""
    return _Rounds(stage, apprentice, checkpoints).run()


class _Rounds:
    """One student's training in rounds.

    Args:
        stage: what the trainings of the run share; its recipe has rounds.
        apprentice: the student.
        checkpoints: where its training goes on from.
    """

    def __init__(self, stage: DistilStage, apprentice: Apprentice, checkpoints: Path) -> None:
        spec = stage.recipe.distil.rounds
        assert spec is not None
        self.stage, self.apprentice, self.checkpoints, self.spec = stage, apprentice, checkpoints, spec
        self.folder = checkpoints.parents[1] / "rounds"
        self.calendar = Calendar(spec, stage.steps)
        self.lessons = apprentice.rows()
        self.log_file = checkpoints / "rounds.json"
        self.log: list[dict[str, Any]] = once(self._begin)
        if next(self._asked("train"), None) is None:
            raise DataError(
                "there is nothing that the student could answer in rounds",
                got="lessons without a question",
                expected="some that answer a user's turn",
                do="add questions to prompts, or leave distil.rounds out",
            )

    def run(self) -> dict[str, Any]:
        """Train to the end and leave the student in its folder; returns its counts."""
        for number in range(len(self.log) + 1, self.spec.count + 2):
            if self._gone_stale():
                break
            self._round(number)
        return once(self._end)

    def _begin(self) -> list[dict[str, Any]]:
        """What came of the rounds that are done; what another training left is taken away."""
        if not self.log_file.is_file():  # of another training, or none
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self.log_file, [])
        found: list[dict[str, Any]] = read_json(self.log_file)
        return found

    def _end(self) -> dict[str, Any]:
        """Leave the chosen student in its folder and take the others away; returns the counts."""
        chosen = self._best() if self.spec.patience else self.log[-1]
        source = self.folder / ("best" if self.spec.patience else "student")
        self.stage.take(source, self.apprentice.folder)
        for name in ("best", "student"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "student.round").unlink(missing_ok=True)
        counts = last_figures(self.apprentice.metrics) | {"rounds": self.log}
        write_json(self.folder / "rounds.json", self.log)
        return counts | {"steps": chosen["step"]}

    def _gone_stale(self) -> bool:
        """Whether as many rounds as there is patience for have brought no better score."""
        if not self.spec.patience or not self.log:
            return False
        return self.log[-1]["round"] - self._best()["round"] >= self.spec.patience

    def _best(self) -> dict[str, Any]:
        """The line of the best student so far, of equals the last."""
        return max(self.log, key=lambda line: (line["score"], line["round"]))

    def _round(self, number: int) -> None:
        """Train up to a round, and have the student write and the teacher score, unless this was the last."""
        self._train_until(number)
        self.log = once(lambda: self._heard(number))

    def _heard(self, number: int) -> list[dict[str, Any]]:
        """The round's own writing, scored, and a line of what came of it in rounds.json; returns all lines."""
        home = self.folder / f"{number:02d}"
        home.mkdir(exist_ok=True)
        line: dict[str, Any] = {"round": number, "step": self.calendar.begins(number)}
        self._write(home, number)
        line["score"] = self._score(home)
        if number <= self.spec.count:
            self._hear(home, number)
            line["answers"] = sum(1 for _ in read_lines(home / "written.jsonl"))
            line["rows"] = len(self._rows_of(number).lengths)
        if line["score"] >= max((earlier["score"] for earlier in self.log), default=0.0):
            self._copy_best()
        self.log.append(line)
        write_json(self.log_file, self.log)
        said = (
            f"{self._named(number)}: step {line['step']}, held-out lessons answered alike {line['score']:.1%}"
        )
        self.stage.context.progress.say(said)
        return self.log

    # The student.

    def _train_until(self, number: int) -> None:
        """distil/rounds/student is the student at the beginning of this round."""
        stamp = self.folder / "student.round"
        if once(lambda: stamp.is_file() and stamp.read_text() == str(number)):
            return
        step, last = self.calendar.begins(number), number > self.spec.count
        written = [self._rows_of(earlier) for earlier in range(1, number)]
        student = self.stage.beginner()
        if step:
            self.stage.fit(
                student,
                JoinedRows([self.lessons, *written]),
                self.apprentice,
                self.checkpoints,
                until=None if last else step,
                draws=[
                    OwnWriting(
                        self.calendar, len(self.lessons.lengths), [len(rows.lengths) for rows in written]
                    )
                ],
            )
        once(partial(self._leave, student, number))
        del student
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _leave(self, student: Any, number: int) -> None:
        """Write the student into its folder, and of which round it is."""
        stamp = self.folder / "student.round"
        stamp.unlink(missing_ok=True)
        self.stage.save(student, self.folder / "student")
        stamp.write_text(str(number))

    def _copy_best(self) -> None:
        self.stage.take(self.folder / "student", self.folder / "best")

    # What it writes, and what the teacher thinks of it.

    def _write(self, home: Path, number: int) -> None:
        """The student's answers to the lessons held out, and but for the last one to the round's questions."""
        recipe = self.stage.recipe
        questions: dict[str, Iterable[dict[str, Any]]] = {
            "held-out": (question_line(key, lesson) for key, lesson in self._held_out())
        }
        if number <= self.spec.count:
            questions["written"] = self._questions(number)
        papers, size = [], 0
        for name, lines in questions.items():
            asked = home / f"{name}-questions.jsonl"
            if not (home / f"{name}.jsonl").is_file() and (count := write_lines(asked, lines)):
                paper = {"questions": str(asked), "out": str(home / f"{name}.jsonl")}
                temperature = self.spec.temperature if name == "written" else 0.0
                papers.append(paper | {"temperature": temperature, "seed": recipe.seed + number})
                size += count
        if not papers:
            return
        what = f"{self._named(number)}: the student writes"
        with self.stage.context.progress.meter(what, size, "answers") as meter:
            write_apart(self.folder / "student", papers, recipe, label=what, advance=meter.advance)

    def _hear(self, home: Path, number: int) -> None:
        """What the teacher thinks of a round's answers, into the book of all rounds."""
        done, written = home / "scored", home / "written.jsonl"
        if not self.stage.from_book or done.is_file():
            return
        recipe = self.stage.recipe.model_dump(mode="json", exclude_unset=True)
        job = {"recipe": recipe, "base": str(self.stage.context.run.base.resolve())}
        job |= {"written": str(written), "book": str(self.folder / "signals")}
        size = sum(1 for _ in read_lines(written))
        what, relief = f"{self._named(number)}: the teacher scores", "lower teach.batch_size"
        with self.stage.context.progress.meter(what, size, "answers") as meter:
            run_child(_SCORE, json.dumps(job), label=what, advance=meter.advance, relief=relief)
        done.touch()

    def _named(self, number: int) -> str:
        count = self.spec.count
        return f"round {number} of {count}" if number <= count else "after the last round"

    def _rows_of(self, number: int) -> RowSource:
        """What the student wrote in a round, with the teacher's signals or for a live one."""
        rows = written_rows(
            self.folder / f"{number:02d}" / "written.jsonl", self.stage.recipe.distil.max_length
        )
        if not self.stage.from_book:
            return MemoryRows((row.ids, row.mask) for row in rows)
        return BookRows.open(
            self.folder / "signals",
            rows,
            tokenizer_hash=self.stage.renderer.tokenizer_hash,
            temperature=self.stage.recipe.capture_temperature,
        )

    def _score(self, home: Path) -> float:
        """Share of the lessons held out whose answer the student comes to as well; 0 where there are none."""
        rule = self.stage.recipe.filter
        wanted = {
            key: final_answer(rule, str(lesson.messages[-1].get("content") or ""))
            for key, lesson in self._held_out()
        }
        if not wanted:
            return 0.0
        right = [
            final_answer(rule, line["text"]) == wanted[line["key"]]
            for line in read_lines(home / "held-out.jsonl")
            if line["finish"] == "stop"
        ]
        return round(sum(right) / len(wanted), 4)

    def _held_out(self) -> Iterator[tuple[str, Lesson]]:
        return islice(self._asked("tune"), _HELD_OUT)

    def _questions(self, number: int) -> Iterator[dict[str, Any]]:
        """A draw of the questions of all lessons, each once as long as there are enough."""
        count = sum(1 for _ in self._asked("train"))
        random = np.random.default_rng((self.stage.recipe.seed, number))
        drawn = set(random.permutation(count)[: self.spec.questions].tolist())
        for place, (key, lesson) in enumerate(self._asked("train")):
            if place in drawn:
                yield question_line(key, lesson)

    def _asked(self, split: str) -> Iterator[tuple[str, Lesson]]:
        """The lessons of a split that answer a question, one for each question, by its key."""
        found = answered_questions(self.stage.context.run.need("filter") / "lessons.jsonl")
        return ((key, lesson) for key, lesson in found if lesson.split == split)
