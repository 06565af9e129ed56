"""The student's weights learn to be rounded: a short training of what a quantised file will hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.contracts.files import digest
from stillroom.contracts.recipe import Aware, AwareFile, Distil, Loss
from stillroom.contracts.records import content_key
from stillroom.gguf import block_formats
from stillroom.gguf.source import ModelFolder
from stillroom.models.local import load_causal
from stillroom.stages.context import StageContext
from stillroom.stages.rows import LessonRows
from stillroom.training.adapters import add_lora
from stillroom.training.batches import RowSource
from stillroom.training.fitting import fit, steps_of
from stillroom.training.keeping import Keeping, write_model
from stillroom.training.objective import Objective
from stillroom.training.simulated import Simulated
from stillroom.training.students import save_student

_VALIDATION_ROWS = 200


@dataclass(frozen=True)
class Trained:
    """A folder of weights as a file of their kind holds them, with their blocks, and what came of the training."""

    folder: Path
    kind: str
    counts: dict[str, Any]


class AwareTraining(LessonRows):
    """The training for one file; quantise/aware/KIND holds what comes of it.

    Args:
        context: the quantise stage's.
        file: the item of the recipe.
    """

    def __init__(self, context: StageContext, file: AwareFile) -> None:
        super().__init__(context)
        self.file, self.student = file, context.run.student
        self.formats = block_formats(ModelFolder(self.student), file.kind)
        self.settings = training_settings(file.aware, self.recipe.distil)

    def run(self) -> Trained:
        """Train, unless what lies there still holds.

        Raises:
            ModelError: the student cannot be converted, or went astray.
            BookError: the book does not fit the lessons.
        """
        folder = self.context.folder / "aware" / self.file.kind
        counts = Keeping(self.context.folder).train(
            self.file.name,
            self._mark(),
            folder,
            folder.with_suffix(".training.json"),
            lambda checkpoints: self._train(folder, checkpoints),
        )
        return Trained(folder, self.file.kind, counts)

    def _mark(self) -> str:
        """All that the trained weights depend on."""
        manifests = (self.context.run.manifest(name) for name in ("teach", "filter"))
        inputs = [manifest.fingerprint if manifest else "" for manifest in manifests]
        settings = self.settings.model_dump(mode="json", exclude={"report_to"})
        aware = self.file.aware.model_dump(mode="json")
        return content_key(digest(self.student), inputs, self.formats, settings, aware, self.recipe.seed)

    def _train(self, folder: Path, checkpoints: Path) -> dict[str, Any]:
        aware = self.file.aware
        rows = self._rows("train")
        student, teacher = self._whole(), self._whole() if aware.teacher == "student" else None
        if aware.lora:
            student = add_lora(student, aware.lora, self.recipe.seed)
        held_out = self._rows("tune")
        # A book's signals are those of one temperature.
        temperature = 1.0 if teacher is not None else self.recipe.capture_temperature
        with Simulated(student, self.formats) as simulated:
            counts = fit(
                student,
                rows,
                objective=Objective(hard=0.0, soft=1.0, temperature=temperature),
                settings=self.settings,
                steps=steps_of(self.settings, len(rows.lengths)),
                seed=self.recipe.seed,
                checkpoints=checkpoints,
                metrics=folder.with_suffix(".metrics.jsonl"),
                label=f"training {self.file.name}",
                progress=self.context.progress,
                validation=[held_out[index] for index in range(min(len(held_out.lengths), _VALIDATION_ROWS))],
                teacher=teacher,
            )
            write_model(folder, lambda scratch: self._save(simulated, scratch))
        return counts

    def _rows(self, split: str) -> RowSource:
        return self.rows(self.lessons(split), signals=self.file.aware.teacher == "book")

    def _whole(self) -> Any:
        """The student in full precision."""
        trust = self.recipe.student.trust_remote_code
        return load_causal(str(self.student), "float32", trust_remote_code=trust)

    def _save(self, simulated: Simulated, folder: Path) -> None:
        """The blocks, and beside them a plain model of the values that they stand for."""
        save_student(simulated.settle(folder), self.renderer.tokenizer, folder, torch.float32)


def training_settings(aware: Aware, distil: Distil) -> Distil:
    """How a file's weights are trained: as the student was, but for what `aware` says."""
    return distil.model_copy(
        update={
            "learning_rate": aware.learning_rate,
            "epochs": aware.epochs,
            "steps": aware.steps,
            "loss": Loss(),
            "temperature": 1.0,
            "curriculum": None,
            "rounds": None,
            "replay": None,
        }
    )
