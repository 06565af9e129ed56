"""Fitting a student to rows: from a recipe's settings to transformers' arguments, with resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from stillroom.contracts.errors import MissingExtra, UserError
from stillroom.contracts.files import storage
from stillroom.contracts.launchers import place
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Curriculum, Distil, Past
from stillroom.models.hardware import bfloat16_is_quick
from stillroom.ranks import once
from stillroom.training.averaging import Average
from stillroom.training.batches import Beside, Draws, JoinedRows, RowSource, StepPlan, TrainingRow
from stillroom.training.callbacks import (
    MetricsFile,
    ProgressCallback,
    StopAfter,
    WholeCheckpoints,
    last_whole_checkpoint,
)
from stillroom.training.curriculum import EasyFirst, difficulty
from stillroom.training.objective import Objective
from stillroom.training.planned import PlannedTrainer
from stillroom.training.replay import Replayed
from stillroom.training.trainer import DistillationTrainer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def steps_of(settings: Distil, rows: int) -> int:
    """Optimiser steps of the recipe's epochs, or its steps."""
    return settings.steps or max(1, round(settings.epochs * rows / settings.batch_size))


@dataclass(frozen=True)
class Training:
    """One training, whatever is learned: how long, in which order, where its checkpoints and figures go.

    Args:
        settings: the recipe's `distil`.
        steps: optimiser steps of the whole training.
        seed: decides the order of rows and dropout.
        checkpoints: where checkpoints are kept while it trains.
        metrics: the JSONL file of losses.
        label: what the progress display calls it.
        progress: where to report to.
        boards: where TensorBoard's files go if it is asked for; transformers' own place is lost with the checkpoints.
        until: stop after this step of the whole, with a checkpoint from which another call goes on.
    """

    settings: Distil
    steps: int
    seed: int
    checkpoints: Path
    metrics: Path
    label: str
    progress: Progress
    boards: Path | None = None
    until: int | None = None

    def plan(
        self, lengths: np.ndarray, draws: Sequence[Draws] = (), beside: Beside | None = None
    ) -> StepPlan:
        """Which rows are in which step on this rank, for rows of so many tokens each."""
        rank, ranks = place()
        return StepPlan(
            lengths,
            batch_size=self.settings.batch_size,
            micro_batch_size=self.settings.micro_batch_size,
            steps=self.steps,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            draws=draws,
            beside=beside,
        )

    def begun(self) -> tuple[Path, int] | None:
        """The newest whole checkpoint and its step, if there is one."""
        with storage(self.checkpoints):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            return once(lambda: last_whole_checkpoint(self.checkpoints))

    def run(
        self,
        build: Callable[[TrainingArguments, list[TrainerCallback]], PlannedTrainer],
        plan: StepPlan,
        *,
        validate: bool,
        more: Sequence[TrainerCallback] = (),
    ) -> dict[str, Any]:
        """Train in place what `build` makes a trainer of, from the newest whole checkpoint if there is one.

        Args:
            build: the trainer, from transformers' arguments and callbacks.
            plan: which rows are in which step.
            validate: whether it has rows to validate on.
            more: callbacks beside those of every training.

        Returns:
            counts for the manifest: steps, lessons seen, the last loss.

        Raises:
            StorageFault: the disk is full.
            UserError: a tracker is not installed, or transformers knows no such optimiser.
            MissingExtra: the optimiser needs a library that is not installed.
        """
        settings = self.settings
        _check_optimiser(settings.optimiser)
        trackers = _trackers(settings.report_to, self.boards)
        found, last = self.begun(), self.until or self.steps
        transformers.utils.logging.set_verbosity_error()
        with (
            storage(self.checkpoints),
            self.progress.meter(self.label, last, "steps", done=found[1] if found else 0) as meter,
        ):
            own = [
                MetricsFile(self.metrics),
                *more,
                WholeCheckpoints(),
                ProgressCallback(meter),
                StopAfter(last),
            ]
            arguments = _arguments(
                settings, self.steps, self.seed, self.checkpoints, plan, validate, self.boards
            )
            trainer = build(arguments, [*own, *trackers])
            trainer.remove_callback(PrinterCallback)
            try:
                if self.until and found and found[1] >= self.until:  # nothing is left to do but to read it
                    trainer._load_from_checkpoint(str(found[0]), trainer.model)
                else:
                    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
            except ImportError as error:
                raise MissingExtra(
                    f"the optimiser {settings.optimiser} is not there",
                    got=str(error).partition("\n")[0],
                    do="install what it names, or set distil.optimiser to adamw_torch_fused",
                ) from None
            finally:
                trainer.release()
        counts = {"steps": last, "lessons seen": last * settings.batch_size, "largest batch": plan.largest()}
        return {**counts, **once(lambda: last_figures(self.metrics))}


def fit(
    student: Any,
    rows: RowSource,
    *,
    objective: Objective,
    validation: Sequence[TrainingRow] = (),
    teacher: nn.Module | None = None,
    past: Past | None = None,
    packing: bool = True,
    draws: Sequence[Draws] = (),
    replay: RowSource | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Train the student in place, from its newest whole checkpoint if there is one.

    Args:
        student: the model, with or without adapters; changed in place.
        rows: what it learns.
        objective: the loss.
        validation: rows whose loss is logged.
        teacher: a live teacher, instead of signals that come with the rows; frozen unless the objective trains it.
        past: what of the student's own past is the live teacher.
        packing: lay rows end to end without padding where student and teacher keep them apart.
        draws: who decides on the rows of some steps instead of the epochs.
        replay: rows without signals beside the lessons, as the settings' `replay` has it.
        how: the arguments of `Training`.

    Returns:
        counts for the manifest, as `Training.run` gives them; errors as there.
    """
    training = Training(**how)
    early = _early(rows, training.settings.curriculum, training.steps)
    beside = None
    if replay is not None and (spec := training.settings.replay):
        each = max(1, round(spec.share * training.settings.batch_size))
        beside = Beside(len(replay.lengths), each)
        rows = JoinedRows([rows, Replayed(replay, rows[0].targets)])
    plan = training.plan(rows.lengths, [*early, *draws], beside)
    more, checkpoint = [], training.begun()
    if past is not None:
        begun = checkpoint[0] if checkpoint else None
        average = Average(student, decay=past.decay, every=past.every, checkpoint=begun)
        teacher, more = average.teacher, [average]

    def build(arguments: TrainingArguments, callbacks: list[TrainerCallback]) -> PlannedTrainer:
        return DistillationTrainer(
            student,
            arguments,
            rows=rows,
            plan=plan,
            objective=objective,
            validation=validation,
            teacher=teacher,
            packing=packing,
            callbacks=callbacks,
        )

    return training.run(build, plan, validate=bool(validation), more=more)


def _trackers(names: Sequence[str], boards: Path | None) -> list[TrainerCallback]:
    """The callback for the tracker whose files have a place of ours; transformers makes the others."""
    missing = set(names) - {"all", "none", *get_available_reporting_integrations()}
    if missing:
        raise UserError(
            "a tracker is not there",
            got=f"distil.report_to: {', '.join(sorted(missing))}",
            expected="one of those that are installed and known to transformers",
            do=f"pip install {' '.join(sorted(missing))}, or take it out of distil.report_to",
        )
    if boards is None or "tensorboard" not in names or place()[0]:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(boards)))]


def _early(rows: RowSource, spec: Curriculum | None, steps: int) -> Iterator[EasyFirst]:
    """Which rows the first steps of a training draw from; rows without signals of their own are as hard as they are long."""
    if spec is not None:
        by = spec.by if rows[0].targets is not None else "length"
        yield EasyFirst.of(difficulty(rows, by), start=spec.start, steps=round(spec.until * steps))


def _check_optimiser(name: str) -> None:
    known = [item.value for item in OptimizerNames]
    if name not in known:
        near = get_close_matches(name, known, 3, 0.4)
        raise UserError(
            "this optimiser is not known",
            got=f"distil.optimiser: {name}",
            expected=f"{', '.join(near or known[:4])} or another name that transformers knows as optim",
        )


def trains_in_bfloat16(settings: Distil) -> bool:
    """Whether products are taken in bfloat16 here."""
    return settings.precision == "bfloat16" or (settings.precision == "auto" and bfloat16_is_quick())


def _arguments(
    settings: Distil,
    steps: int,
    seed: int,
    folder: Path,
    plan: StepPlan,
    validate: bool,
    boards: Path | None,
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=plan.micro,
        gradient_accumulation_steps=plan.micro_batches_per_step,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        optim=settings.optimiser,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=trains_in_bfloat16(settings),
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        logging_steps=10,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        eval_strategy="steps" if validate else "no",
        eval_steps=settings.validate_every,
        report_to=[name for name in settings.report_to if name != "tensorboard" or boards is None] or "none",
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )


def last_figures(metrics: Path) -> dict[str, float]:
    """The last figure of each kind in a metrics file."""
    found: dict[str, float] = {}
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        found |= {key: line[key] for key in ("loss", "validation_loss", "validation_kl") if key in line}
    return found
