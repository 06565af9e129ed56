"""A student that teaches itself: an average of its earlier weights, or an earlier copy of them, is the live teacher.

Tarvainen and Valpola, Mean teachers are better role models, arXiv 1703.01780.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import TrainerCallback

_FILE = "average.safetensors"


class Average(TrainerCallback):
    """The teacher made of a student's past; it is part of every checkpoint.

    Args:
        student: without adapters; its weights now are the teacher's first.
        decay: what is kept of the teacher at each refresh, the student giving the rest; 0 makes it a copy.
        every: optimiser steps between refreshes.
        checkpoint: the folder of a checkpoint to go on from.
    """

    def __init__(self, student: nn.Module, *, decay: float, every: int, checkpoint: Path | None) -> None:
        self.decay, self.every = decay, every
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        if checkpoint is not None:
            load_model(self.teacher, checkpoint / _FILE)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """One optimiser step is done."""
        if state.global_step % self.every:
            return
        own = dict(self.teacher.named_parameters())
        for name, parameter in model.named_parameters():
            if name in own:  # what is attached for the training is the student's alone
                own[name].lerp_(parameter.detach().to(own[name]), 1 - self.decay)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the student's own weights; the checkpoint does not count as whole before."""
        if state.is_world_process_zero:
            save_model(self.teacher, str(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE))
