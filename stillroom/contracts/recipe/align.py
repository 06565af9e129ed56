"""How the distilled student is aligned to preferences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.models import Lora
from stillroom.contracts.recipe.section import Section


class Align(Section):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290): right answers over wrong ones."""

    pairs: Literal["verified", "teacher"] | str = Field(
        "verified",
        description="Where pairs come from: `verified`, the teacher's right and wrong samples that filter told apart, and "
        "what its judge preferred (wants teach.samples above 1); `teacher`, a lesson's answer over what the student answers "
        "instead; or a JSONL file of {prompt, chosen, rejected}, each a list of messages or a text.",
    )
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "nca_pair", "sppo_hard", "apo_zero", "apo_down"] = (
        Field("sigmoid", description="TRL's loss_type; `sigmoid` is DPO itself.")
    )
    beta: float = Field(0.1, gt=0, description="How strongly the student is held to what it was.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate (AdamW).")
    epochs: float = Field(1.0, gt=0, description="Passes over the pairs.")
    batch_size: int = Field(16, ge=1, description="Pairs in one optimiser step.")
    micro_batch_size: int = Field(8, ge=1, description="Pairs in one forward pass.")
    max_length: int = Field(2048, ge=8, description="Longer pairs are left out, and counted.")
    lora: Lora | None = Field(
        None,
        description="Train adapters; the student without them is the reference then. Empty: all weights, beside a copy.",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> Align:
        if self.batch_size % min(self.micro_batch_size, self.batch_size):
            raise ValueError(
                f"batch_size ({self.batch_size}) is no multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self
