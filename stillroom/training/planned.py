"""A transformers.Trainer whose steps follow a plan, and whose loss is divided by what the whole step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerControl, TrainingArguments

from stillroom.training.batches import StepPlan
from stillroom.training.prefetch import Ahead


class PlannedTrainer(Trainer):
    """Batches follow a StepPlan and are made ahead of time.

    Args:
        model: the student, with or without adapters.
        args: transformers' own arguments; `max_steps` must be set.
        rows: a dataset of them.
        plan: which rows are in which step; of this rank's micro-batches.
        collate: rows to a batch, with `labels`, of which each counts as one.
    """

    loss_is_scaled_for_ga = True
    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        rows: Dataset[Any],
        plan: StepPlan,
        collate: Callable[..., dict[str, Any]],
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        super().__init__(model, args, train_dataset=rows, data_collator=collate, **kwargs)
        self._ahead: Ahead | None = None

    def release(self) -> None:
        """Make no more batches."""
        if self._ahead is not None:
            self._ahead.close()

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank in the plan's order; `get_batch_samples` reads them ahead of time."""
        return DataLoader(self.train_dataset, batch_sampler=self.plan, collate_fn=self.data_collator)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The micro-batches of a step and what they count; those of the next step are in the making."""
        if self._ahead is None or self._ahead.source is not epoch_iterator:
            self._ahead = Ahead(epoch_iterator, depth=num_batches)
        return super().get_batch_samples(self._ahead, num_batches, device)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """What the whole optimiser step counts, over micro-batches and ranks."""
        count = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def share_of_step(self, count: torch.Tensor | int | None, here: int) -> float:
        """What each value of a micro-batch is multiplied by, so that the step's loss is their mean.

        DDP averages gradients over ranks, hence the factor: the sum over ranks must come out undivided.

        Args:
            count: what the step counts, as transformers hands it over.
            here: what the micro-batch counts, where it does not.
        """
        return self.args.world_size / max(int(count if count is not None else here), 1)

    @property
    def done(self) -> float:
        """Which share of the training is done, 0 to 1."""
        return self.state.global_step / max(self.state.max_steps, 1)
