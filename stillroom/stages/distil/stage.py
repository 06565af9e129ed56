"""What the trainings of one run share, and the training of one model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stillroom.contracts.conversations import with_system
from stillroom.contracts.files import digest
from stillroom.contracts.memory import PartPeak
from stillroom.contracts.recipe import Distil
from stillroom.contracts.records import content_key
from stillroom.lessons.prompts.sources import held_out_keys
from stillroom.lessons.replay import replayed
from stillroom.lessons.teach.asking import read_run_prompts
from stillroom.models.local import load_causal
from stillroom.models.references import resolve_model
from stillroom.models.rendering import Rendered
from stillroom.planning.memory import recipe_memory
from stillroom.planning.sums import Shape
from stillroom.ranks import once
from stillroom.stages.context import StageContext
from stillroom.stages.rows import LessonRows
from stillroom.training.adapters import add_lora, merged
from stillroom.training.batches import MemoryRows, RowSource, TrainingRow
from stillroom.training.fitting import fit, trains_in_bfloat16
from stillroom.training.keeping import Keeping, write_model
from stillroom.training.matching import Matching
from stillroom.training.objective import Objective, decoder_of
from stillroom.training.students import build_student, save_student

_RANKING_ROWS = 256
"""Lessons over which the parts of a model are ranked that is cut by what it does."""


@dataclass(frozen=True)
class Apprentice:
    """One model to be trained: where it goes, on what, and with which loss."""

    name: str
    folder: Path
    metrics: Path
    objective: Objective
    rows: Callable[[], RowSource]


Way = Callable[[Apprentice, Path], dict[str, Any]]
"""Trains a model, with its checkpoints in a folder, and returns its counts."""


class DistilStage(LessonRows):
    """What the trainings of one run share: the untrained student, its tokens, the lessons."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self.keeping = Keeping(context.folder)
        self.objective = _objective(self.recipe.distil)
        self.steps = 0
        self.validation: list[TrainingRow] = []

    def untrained(self, *, rounded: bool = True) -> Any:
        """The student before it has learned anything; its frozen weights as lora.base has them, or whole."""
        spec = self.recipe.student
        model = spec.model
        return build_student(
            spec if rounded else spec.model_copy(update={"lora": None}),
            model=resolve_model(model, self.context.run.base) if model else None,
            source=self.source,
            seed=self.recipe.seed,
            texts=lambda: (row.ids for row in islice(self.lessons("train"), _RANKING_ROWS)),
        )

    def beginner(self) -> Any:
        """The student at its first step, with adapters where the recipe asks for them."""
        student, lora = self.untrained(), self.recipe.student.lora
        return student if lora is None else add_lora(student, lora, self.recipe.seed)

    @cached_property
    def replay(self) -> RowSource | None:
        """General text beside the lessons, where the recipe has some; read once for all trainings."""
        spec = self.recipe.distil.replay
        if spec is None:
            return None
        run, length = self.context.run, self.recipe.distil.max_length
        held_out = held_out_keys(self.recipe, run.locate)
        with self.context.progress.meter("reading what is replayed", spec.limit, "texts") as meter:

            def read() -> Iterator[Rendered]:
                for row in replayed(spec, run.locate(spec.file), self.renderer, length, held_out):
                    meter.advance()
                    yield row

            return MemoryRows((row.ids, row.mask) for row in read())

    @property
    def from_book(self) -> bool:
        """Whether the student's rows come with the signals of the run's book."""
        return self.objective.listens and self.recipe.distil.teacher == "book"

    def live_teacher(self) -> Any | None:
        """The teacher itself, for training beside it; None where the student hears another or none."""
        if not self.objective.listens or self.recipe.distil.teacher not in ("live", "online"):
            return None
        spec = self.recipe.teacher
        reference = str(resolve_model(spec.model, self.context.run.base))
        # One that is trained as well has weights to be trained, as the student's are.
        dtype = "float32" if self.objective.mutual else spec.dtype
        return load_causal(reference, dtype, trust_remote_code=spec.trust_remote_code)

    def labels(self) -> Iterator[Rendered]:
        """The questions that came with a right answer, with that answer."""
        for prompt in read_run_prompts(self.context.run.need("prompts")):
            if prompt.reference is not None and prompt.split == "train":
                turn = {"role": "assistant", "content": prompt.reference}
                asked = with_system(prompt.messages, self.recipe.teach.system)
                yield self.renderer.lesson([*asked, turn], tools=prompt.tools)

    def mark(self, apprentice: Apprentice) -> str:
        """All that a trained model depends on."""
        inputs = {}
        for name in ("prompts", "teach", "filter"):
            manifest = self.context.run.manifest(name)
            inputs[name] = manifest.fingerprint if manifest else ""
        left_out = {"report_to", "loss"}
        if not apprentice.objective.listens:
            left_out |= {"teacher", "past", "match", "rounds"}
        replay = self.recipe.distil.replay
        if replay is None:  # runs from before there was any still hold
            left_out |= {"replay"}
        else:
            inputs["replay"] = self.context.run.content(replay.file) or ""
        settings = self.recipe.distil.model_dump(mode="json", exclude=left_out)
        return content_key(inputs, settings, asdict(apprentice.objective), self.steps, self.origin())

    def origin(self) -> str:
        """All that the untrained student depends on."""
        content = digest(self.source) if isinstance(self.source, Path) else self.source
        prune, read = self.recipe.student.prune, ""
        if prune and prune.ranks and (manifest := self.context.run.manifest("filter")):
            read = manifest.fingerprint
        return content_key(content, self.recipe.student.model_dump(mode="json"), self.recipe.seed, read)

    def untaught(self, folder: Path) -> None:
        """Write the student before it has learned anything, unless it lies there."""

        def write() -> None:
            mark = self.origin()
            if not self.keeping.holds("before", mark, folder):
                self.save(self.untrained(rounded=False), folder)
                self.keeping.remember("before", mark)

        once(write)

    def train(self, apprentice: Apprentice, way: Way | None = None) -> dict[str, Any]:
        """Train one model unless its mark holds; returns its counts.

        Args:
            apprentice: the model.
            way: leaves the trained model in the apprentice's folder; default: one training over its rows.
        """
        return self.keeping.train(
            apprentice.name,
            self.mark(apprentice),
            apprentice.folder,
            apprentice.metrics.with_name("training.json"),
            lambda checkpoints: (way or self._at_once)(apprentice, checkpoints),
        )

    def _at_once(self, apprentice: Apprentice, checkpoints: Path) -> dict[str, Any]:
        student = self.beginner()
        counts = self.fit(student, apprentice.rows(), apprentice, checkpoints)
        self.save(student, apprentice.folder)
        return counts

    def fit(
        self, student: Any, rows: RowSource, apprentice: Apprentice, checkpoints: Path, **part: Any
    ) -> dict[str, Any]:
        """Train a student in place; `part` says how far and in which order, where that is not the whole in epochs."""
        listens, recipe = apprentice.objective.listens, self.recipe
        shape, peak = Shape.known(decoder_of(student).config.to_dict()), PartPeak()
        own = sum(weight.numel() * weight.element_size() for weight in student.parameters())
        counts = fit(
            student,
            rows,
            objective=apprentice.objective,
            settings=recipe.distil,
            steps=self.steps,
            seed=recipe.seed,
            checkpoints=checkpoints,
            metrics=apprentice.metrics,
            label=f"training {apprentice.name}",
            progress=self.context.progress,
            replay=self.replay,
            validation=self.validation if listens else [],
            teacher=self.live_teacher() if listens else None,
            past=recipe.distil.past if listens and recipe.distil.teacher == "self" else None,
            boards=self.context.folder / "tensorboard" / apprentice.name,
            **part,
        )
        taken = peak.taken()
        memory = self._memory(shape, counts["largest batch"], taken and own + taken, listens=listens)
        return counts | {"memory": memory}

    def _memory(
        self, shape: Shape | None, tokens: int, measured: int | None, *, listens: bool
    ) -> dict[str, Any]:
        """What a training was planned to take, where the student's shape is known, and what it took."""
        found: dict[str, Any] = {"measured bytes": measured} if measured else {}
        if shape is None:
            return found
        # Whoever hears no teacher has none beside it.
        distil = self.recipe.distil if listens else self.recipe.distil.model_copy(update={"teacher": "book"})
        live = distil.teacher in ("live", "online")
        name = resolve_model(self.recipe.teacher.model, self.context.run.base) if live else None
        teacher = Shape.read(name) if isinstance(name, Path) else None
        recipe = self.recipe.model_copy(update={"distil": distil})
        plan = recipe_memory(
            recipe,
            shape,
            teacher,
            tokens,
            bfloat16=trains_in_bfloat16(distil),
            gpu=torch.cuda.is_available(),
        )
        parts = {f"{part} bytes": size for part, size in plan.parts.items() if size}
        return {"planned bytes": plan.total, **found, "planned": parts}

    def save(self, student: Any, folder: Path) -> None:
        """Write a model folder, whole or not at all."""
        config = AutoConfig.from_pretrained(
            self.source, trust_remote_code=self.recipe.student.trust_remote_code
        )
        whole = merged(student, lambda: self.untrained(rounded=False))
        write_model(
            folder, lambda scratch: save_student(whole, self.renderer.tokenizer, scratch, config.dtype)
        )

    def take(self, source: Path, folder: Path) -> None:
        """As `save`, from a folder that `save` wrote, which stays."""
        write_model(folder, lambda scratch: shutil.copytree(source, scratch, dirs_exist_ok=True))


def _objective(distil: Distil) -> Objective:
    """The loss that a recipe asks for."""
    loss, match = distil.loss, distil.match
    matching = Matching(
        loss.matched,
        match.layer_weights,
        match.layers,
        match.states,
        match.maps,
        match.relation_heads,
    )
    mutual = distil.teacher == "online"
    return Objective(loss.hard, loss.soft, distil.temperature, loss.divergence, matching, mutual)
