"""How the student trains, and what trains beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.section import Section

Baseline = Literal["before", "labels-only", "answers-only"]


class Loss(Section):
    """The weights of the training loss's terms."""

    hard: float = Field(0.0, ge=0, description="Cross-entropy with the lesson's own tokens.")
    soft: float = Field(1.0, ge=0, description="Forward KL to the teacher's signals.")

    @model_validator(mode="after")
    def _some(self) -> Loss:
        if self.hard == 0 and self.soft == 0:
            raise ValueError("hard and soft are both 0: nothing would be learned")
        return self


class Distil(Section):
    """How the student trains."""

    loss: Loss = Field(default_factory=Loss, description="The weights of the loss's terms.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Softens both distributions; signals are captured at it, and the soft loss carries T squared.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate (AdamW).")
    epochs: float = Field(3.0, gt=0, description="Passes over the lessons.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps instead of epochs.")
    batch_size: int = Field(32, ge=1, description="Lessons in one optimiser step, on all devices together.")
    micro_batch_size: int = Field(32, ge=1, description="Lessons in one forward pass on one device.")
    max_length: int = Field(2048, ge=8, description="Longer lessons are left out, and counted.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of training; `auto` is bfloat16 where the hardware is quick at it."
    )
    optimiser: str = Field(
        "adamw_torch_fused",
        description="Any `optim` of transformers: adamw_8bit, paged_adamw_8bit (these want bitsandbytes), adafactor, ...",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass: less memory, about a third more time.",
    )
    checkpoint_every: int = Field(100, ge=1, description="Optimiser steps between checkpoints.")
    validate_every: int = Field(100, ge=1, description="Optimiser steps between validation losses.")
    report_to: list[str] = Field(
        [],
        description="Trackers that transformers knows: tensorboard (files in distil/tensorboard), wandb, ...",
    )
