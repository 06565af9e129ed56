"""The trainer: a transformers.Trainer whose rows carry a teacher's signals.

All of its flags, trackers, callbacks and launchers work. What differs: batches follow a StepPlan, a step's loss is
divided by the selected tokens of the whole step over micro-batches and ranks, and checkpoints count only once a
marker says that they are whole.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from stillroom.contracts.progress import Meter
from stillroom.training.batches import Rows, RowSource, StepPlan, TrainingRow, collate
from stillroom.training.objective import Objective

WHOLE = "whole"
"""Written into a checkpoint last; transformers writes checkpoints in place, so a killed save looks like one."""


class DistillationTrainer(Trainer):
    """Trains a student on rows of tokens and signals.

    Args:
        model: the student, with or without adapters.
        args: transformers' own arguments; `max_steps` must be set.
        rows: what to train on.
        plan: which rows are in which step.
        objective: the loss.
        validation: rows whose loss is logged every `eval_steps`.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        rows: RowSource,
        plan: StepPlan,
        objective: Objective,
        validation: Sequence[TrainingRow] = (),
        **kwargs: Any,
    ) -> None:
        objective.attach(model)
        self.plan, self.objective = plan, objective
        super().__init__(
            model,
            args,
            train_dataset=Rows(rows),
            eval_dataset=list(validation) or None,
            data_collator=collate,
            **kwargs,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches in the plan's order."""
        loader = DataLoader(self.train_dataset, batch_sampler=self.plan, collate_fn=collate)
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """Selected tokens of the whole optimiser step, over micro-batches and ranks."""
        count = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's loss.

        DDP averages gradients over ranks, hence the factor: the sum over ranks must come out undivided.
        """
        count = num_items_in_batch if num_items_in_batch is not None else len(inputs["labels"])
        outputs = model(**inputs, scale=self.args.world_size / max(int(count), 1))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: mean negative log-likelihood and, with signals, mean KL to the teacher, nats a token."""
        model = self.model.eval()
        parts = {"validation_loss": Objective(hard=1.0, soft=0.0)}
        if self.objective.needs_signals:
            parts["validation_kl"] = Objective(hard=0.0, soft=1.0, temperature=self.objective.temperature)
        sums, tokens = dict.fromkeys(parts, 0.0), 0
        decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
        for start in range(0, len(self.eval_dataset), self.args.per_device_train_batch_size):
            rows = self.eval_dataset[start : start + self.args.per_device_train_batch_size]
            batch = self._prepare_inputs(collate(rows))
            tokens += len(batch["labels"])
            with self.accelerator.autocast():
                for name, part in parts.items():
                    # Temperature squared belongs to the training loss; the figure shown is a plain KL.
                    value = part.loss(decoder, **batch, scale=1.0)["loss"].item()
                    sums[name] += value / part.temperature**2
        model.train()
        figures = {name: value / max(tokens, 1) for name, value in sums.items()}
        self.log(figures)
        return figures


class MetricsFile(TrainerCallback):
    """Writes every log line to metrics.jsonl, and drops the lines after a resumed step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep only what the resumed checkpoint had seen."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= state.global_step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a half-written last line of a killed run
        self.path.write_text("".join(kept) if state.global_step else "")
        self._time, self._step = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One line a log."""
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{k: v for k, v in logs.items() if k != "epoch"}}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint as whole once all of it is on disk."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Sync the folder's files, then write the marker."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for item in folder.iterdir():
            if item.is_file():
                descriptor = os.open(item, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        (folder / WHOLE).touch()


class ProgressCallback(TrainerCallback):
    """Reports steps to the stage's meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step is done."""
        last = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        self.meter.advance(1, note=f"loss {last:.3f}" if last is not None else None)


def last_whole_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; half-written ones are removed."""
    whole: list[tuple[int, Path]] = []
    for item in folder.glob("checkpoint-*"):
        if (item / WHOLE).is_file():
            whole.append((int(item.name.rpartition("-")[2]), item))
        else:
            shutil.rmtree(item)
    if not whole:
        return None
    step, path = max(whole)
    return path, step
