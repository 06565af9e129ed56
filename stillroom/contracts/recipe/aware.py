"""Files whose weights learn to be rounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from stillroom.contracts.recipe.export import Kind
from stillroom.contracts.recipe.models import Lora
from stillroom.contracts.recipe.section import Section


class Aware(Section):
    """A short training of the student's weights as the file will hold them; what is not here is as `distil` says."""

    teacher: Literal["student", "book"] = Field(
        "student",
        description="Whom it hears, and nothing else: the `student` itself in full precision, or the recipe's teacher "
        "through its lesson `book`.",
    )
    learning_rate: float = Field(
        1e-5, gt=0, description="Peak learning rate. Models of a few million parameters want about 1e-4."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the lessons.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps instead of epochs.")
    lora: Lora | None = Field(
        None,
        description="Train low-rank adapters instead of all weights; their sum with the weights is what is rounded.",
    )

    @field_validator("lora")
    @classmethod
    def _added(cls, lora: Lora | None) -> Lora | None:
        if lora and (lora.dora or lora.dropout or lora.base != "float32"):
            raise ValueError(
                "the sum of weights and adapters is rounded: set dropout to 0 and leave dora and base out"
            )
        return lora


class AwareFile(Section):
    """A file of some kind, and beside it one whose weights have learned to be rounded to it."""

    kind: Kind = Field(description="The kind of both files.")
    aware: Aware = Field(default_factory=Aware, description="How the second one learns.")

    @field_validator("kind")
    @classmethod
    def _rounds(cls, kind: Kind) -> Kind:
        if kind in ("F32", "F16", "BF16"):
            raise ValueError(f"{kind} has nothing that weights could learn: take a kind of fewer bits")
        return kind

    @property
    def name(self) -> str:
        """What follows `student-` in the name of the file that has learned."""
        return f"{self.kind}-aware"


def _form(value: Any) -> str:
    return "kind" if isinstance(value, str) else "aware"


QuantisedFile = Annotated[
    Annotated[Kind, Tag("kind")] | Annotated[AwareFile, Tag("aware")], Discriminator(_form)
]
"""A kind of file, or `{kind: KIND, aware: {...}}`."""
