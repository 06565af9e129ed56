"""The student learns to choose as the teacher does, and the baselines beside it, each with the same number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import digest, read_lines
from stillroom.contracts.records import content_key
from stillroom.models.classes import question_text
from stillroom.models.classifier import TextEncoder, load_classifier
from stillroom.models.vocabulary import check_same_vocabulary
from stillroom.ranks import once
from stillroom.signals.classes import ClassBook
from stillroom.stages.classify.job import ClassJob, Text, places
from stillroom.stages.context import StageContext
from stillroom.training.classifying import (
    ClassObjective,
    ClassRow,
    ClassRows,
    build_classifier,
    fit_classifier,
)
from stillroom.training.fitting import steps_of
from stillroom.training.keeping import Keeping, write_model
from stillroom.training.students import save_student

_VALIDATION_ROWS = 1000

Right = Sequence[int] | None


def run(context: StageContext) -> dict[str, Any]:
    """Write distil/student, distil/metrics.jsonl and distil/baselines/NAME.

    Raises:
        DataError: there is nothing to train on.
        BookError: the book of classes does not fit the lessons.
        ModelError: the student cannot be built.
    """
    stage = _Stage(context)
    train = ClassRows(stage.lessons("train"), stage.book)
    if not len(train):
        raise DataError("no lesson to train on", do="look at filter/rejected.jsonl")
    stage.steps = steps_of(context.recipe.distil, len(train))
    tune = ClassRows(stage.lessons("tune", copies=False), stage.book)
    validation = [tune[place] for place in range(min(len(tune), _VALIDATION_ROWS))]
    folder = context.folder
    counts: dict[str, Any] = {"lessons": len(train), "tokens": int(train.lengths.sum())}
    models = {"student": stage.train("student", folder, train, stage.objective(), validation)}
    for name in context.recipe.baselines:
        models[name] = stage.baseline(name)
    return counts | {"models": models}


class _Stage:
    """What the trainings of one run share."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.recipe, self.job = context, context.recipe, ClassJob(context)
        self.book = ClassBook(context.run.need("teach") / "signals")
        self.labels = {name: place for place, name in enumerate(self.book.labels)}
        self.keeping, self.steps = Keeping(context.folder), 0
        source, trust = self.job.source, self.recipe.student.trust_remote_code
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        self.encoder = TextEncoder(source, config, self.recipe.distil.max_length, trust)

    def untrained(self) -> Any:
        """The student before it has learned anything."""
        spec = self.recipe.student
        return build_classifier(
            spec,
            model=self.job.source if spec.model else None,
            source=None if spec.model else self.job.source,
            labels=self.book.labels,
            several=self.job.spec.several,
            seed=self.recipe.seed,
        )

    def objective(self, *, labels_alone: bool = False) -> ClassObjective:
        """The recipe's loss, or that of the right classes alone."""
        distil, several = self.recipe.distil, self.job.spec.several
        if labels_alone:
            return ClassObjective(len(self.labels), several, hard=1.0, soft=0.0)
        return ClassObjective(
            len(self.labels),
            several,
            distil.loss.hard,
            distil.loss.soft,
            distil.loss.hidden,
            distil.temperature,
            distil.match.layers,
            distil.match.layer_weights,
            distil.match.states,
        )

    def lessons(self, split: str, *, copies: bool = True) -> Iterator[tuple[list[int], Right, str]]:
        """The lessons of a split as rows, with the right class where it is known; copies have none."""
        right = {Text(text).key: places(names, self.labels) for text, names in self.job.labelled(split)}
        for question, _ in self._taught(split):
            for text in self.job.texts(question):
                if copies or not text.copy:
                    yield self._row(text, None if text.copy else right.get(text.key))

    def answers(self) -> Iterator[tuple[list[int], Right, str]]:
        """The lessons to train on, with the teacher's answer for the right class."""
        for question, answer in self._taught("train"):
            yield self._row(Text(question), places(self.job.classes_of(answer), self.labels))

    def labelled(self) -> Iterator[tuple[list[int], Right, str]]:
        """The questions that came with a right class."""
        for text, names in self.job.labelled("train"):
            yield self._row(Text(text), places(names, self.labels))

    def _taught(self, split: str) -> Iterator[tuple[str, str]]:
        for line in read_lines(self.context.run.need("filter") / "lessons.jsonl"):
            if line["split"] == split:
                yield question_text(line["messages"]), line["messages"][-1]["content"]

    def _row(self, text: Text, right: Right) -> tuple[list[int], Right, str]:
        return self.encoder([text.shown(self.job.spec, self.encoder.mark)])[0], right, text.key

    def baseline(self, name: str) -> dict[str, Any]:
        """Train one of the recipe's baselines, or leave the student as it begins."""
        folder = self.context.folder / "baselines" / name
        if name == "before":

            def write() -> None:
                if not self.keeping.holds(name, mark := self._mark(None), folder):
                    self._save(self.untrained(), folder)
                    self.keeping.remember(name, mark)

            once(write)
            return {"steps": 0}
        rows = ClassRows(self.labelled() if name == "labels-only" else self.answers())
        if not len(rows):
            raise DataError(
                f"the baseline {name} has nothing to learn from",
                got="no question of the recipe's prompts has a right answer",
                do=f"add labelled questions to prompts, or take {name} out of baselines",
            )
        return self.train(name, folder, rows, self.objective(labels_alone=True), [])

    def train(
        self,
        name: str,
        folder: Path,
        rows: ClassRows,
        objective: ClassObjective,
        validation: list[ClassRow],
    ) -> dict[str, Any]:
        """Train one model unless its mark holds; its counts."""
        model = folder / "student" if name == "student" else folder
        teacher = None
        if objective.matches:
            check_same_vocabulary(self.job.teacher, self.job.source)
            teacher = load_classifier(
                self.job.teacher, trust_remote_code=self.recipe.teacher.trust_remote_code
            )

        def work(checkpoints: Path) -> dict[str, Any]:
            student = self.untrained()
            counts = fit_classifier(
                student,
                rows,
                objective=objective,
                validation=validation,
                teacher=teacher,
                settings=self.recipe.distil,
                steps=self.steps,
                seed=self.recipe.seed,
                checkpoints=checkpoints,
                metrics=folder / "metrics.jsonl",
                label=f"training {name}",
                progress=self.context.progress,
                boards=self.context.folder / "tensorboard" / name,
            )
            self._save(student, model)
            return counts

        return self.keeping.train(name, self._mark(objective), model, folder / "training.json", work)

    def _mark(self, objective: ClassObjective | None) -> str:
        """All that a model depends on."""
        inputs = {}
        for name in ("prompts", "teach", "filter"):
            manifest = self.context.run.manifest(name)
            inputs[name] = manifest.fingerprint if manifest else ""
        source = self.job.source
        content = digest(source) if isinstance(source, Path) else source
        settings = self.recipe.distil.model_dump(mode="json", exclude={"report_to", "loss"})
        spec = self.recipe.student.model_dump(mode="json")
        return content_key(inputs, settings, repr(objective), self.steps, content, spec, self.recipe.seed)

    def _save(self, student: Any, folder: Path) -> None:
        tokenizer = self.encoder.tokenizer
        write_model(folder, lambda scratch: save_student(student, tokenizer, scratch, torch.float32))
