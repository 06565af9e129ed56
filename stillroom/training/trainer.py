"""The trainer: a transformers.Trainer whose student hears a teacher, live or through its rows' signals.

All of its flags, trackers, callbacks and launchers work. What differs: batches follow a plan, rows are packed where the
models honour it, and a step's loss is divided by the selected tokens of the whole step over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import TrainingArguments

from stillroom.contracts.recipe.schedule import value_at
from stillroom.losses import SparseTargets
from stillroom.signals.hidden import HiddenSignals
from stillroom.training.batches import Rows, RowSource, StepPlan, TrainingRow
from stillroom.training.collation import collate
from stillroom.training.objective import Objective, decoder_of
from stillroom.training.packable import use_packing
from stillroom.training.packing import Layout, undo_packing
from stillroom.training.planned import PlannedTrainer

_MATCHER = "matcher.safetensors"
_PARTNER = "partner.safetensors"


class DistillationTrainer(PlannedTrainer):
    """Trains a student on rows of tokens, with their signals or a live teacher.

    `release` gives the student its own forward and attention back.

    Args:
        model: the student, with or without adapters.
        args: transformers' own arguments; `max_steps` must be set.
        rows: what to train on.
        plan: which rows are in which step; of this rank's micro-batches.
        objective: the loss.
        validation: rows whose loss is logged every `eval_steps`, the same on every rank.
        teacher: a live teacher of the student's tokenizer; its last hidden states and head are asked in the
            student's forward, and rows need no signals. It is moved to the student's device, and frozen unless the
            objective is mutual.
        packing: lay rows end to end instead of padding them, if student and teacher prove to keep them apart.
            `packed` says what came of it.

    Raises:
        ValueError: the live teacher carries adapters.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        rows: RowSource,
        plan: StepPlan,
        objective: Objective,
        validation: Sequence[TrainingRow] = (),
        teacher: nn.Module | None = None,
        packing: bool = True,
        **kwargs: Any,
    ) -> None:
        objective.attach(model, teacher)
        self.objective, self.teacher = objective, teacher
        super().__init__(
            model,
            args,
            rows=Rows(rows),
            plan=plan,
            collate=collate,
            eval_dataset=sorted(validation, key=lambda row: len(row.ids)) or None,
            **kwargs,
        )
        if teacher is not None:
            if not objective.mutual:
                teacher.eval().requires_grad_(False)
            if getattr(teacher, "quantization_method", None) is None:  # those lie where they were loaded to
                teacher.to(args.device)
        longest = max([int(plan.lengths.max()), *(len(row.ids) for row in validation)])
        self.packed = packing and not objective.matching.reads_maps and self._can_pack(longest)
        self.data_collator = partial(collate, packed=self.packed)

    def _can_pack(self, longest: int) -> bool:
        if not use_packing(self.model, longest, attached=True):
            return False
        if self.teacher is None or use_packing(self.teacher, longest, attached=False):
            return True
        undo_packing(decoder_of(self.model))
        return False

    def release(self) -> None:
        """Student and teacher as they were: their own forward, their own attention."""
        super().release()
        self.objective.detach(self.model)
        for model in (self.model, self.teacher):
            if model is not None:
                undo_packing(decoder_of(model))

    # Checkpoints. An adapter's holds the adapter alone; what is matched inside has weights of its own.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self.objective.alone(self.model):
            super()._save(output_dir, state_dict)
        folder, matcher = Path(output_dir or self.args.output_dir), self.objective.matcher(self.model)
        if matcher is not None and self.args.should_save:
            save_file(matcher.state_dict(), folder / _MATCHER)
        if self.objective.mutual and self.teacher is not None and self.args.should_save:
            save_model(self.teacher, str(folder / _PARTNER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self.objective.alone(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.objective.mutual and self.teacher is not None:
            load_model(self.teacher, Path(resume_from_checkpoint) / _PARTNER)
        matcher = self.objective.matcher(self.model)
        if matcher is not None:
            matcher.load_state_dict(load_file(Path(resume_from_checkpoint) / _MATCHER))

    def _prepare_input(self, data: Any) -> Any:
        """To the model's device, signals and layouts too."""
        if isinstance(data, SparseTargets | HiddenSignals | Layout):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    # Loss.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's loss."""
        scale = self.share_of_step(num_items_in_batch, len(inputs["labels"]))
        outputs = model(**inputs, scale=scale, progress=self.done)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: mean negative log-likelihood and, with a teacher, mean KL to it, nats a token.

        The model is called through whatever wraps it, as often on each rank, which is what sharding asks for.
        """
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        was_training = model.training
        model.eval()
        exact = torch.float64 if self.args.device.type != "mps" else torch.float32
        sums = torch.zeros(3, dtype=exact, device=self.args.device)
        for batch in self._validation_batches():
            with self.accelerator.autocast():
                values = model(**self._prepare_inputs(batch), scale=1.0, measure=True, progress=1.0)
            sums[0] += len(batch["labels"])
            sums[1] += values["hard_values"].to(exact).sum()
            sums[2] += values["soft_values"].to(exact).sum()
        model.train(was_training)
        tokens, hard, soft = self.accelerator.reduce(sums).tolist()
        figures = {"validation_loss": hard / max(tokens, 1)}
        if self.objective.needs_signals:
            # Temperature squared belongs to the training loss; the figure shown is a plain KL, at the last temperature.
            figures["validation_kl"] = soft / value_at(self.objective.temperature, 1.0) ** 2 / max(tokens, 1)
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _validation_batches(self) -> Iterator[dict[str, Any]]:
        """This rank's share; where it is shorter than another's, a row without a selected token fills it up."""
        rows = list(self.eval_dataset or [])
        size, ranks, rank = (
            self.args.per_device_train_batch_size,
            self.args.world_size,
            self.args.process_index,
        )
        pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
        for first in range(0, len(pieces), ranks):
            mine = pieces[first + rank] if first + rank < len(pieces) else [_silent(rows[0])]
            yield self.data_collator(mine)


def _silent(row: TrainingRow) -> TrainingRow:
    none = None if row.targets is None else row.targets.select(slice(0, 0))
    return TrainingRow(row.ids, row.mask & False, none)
