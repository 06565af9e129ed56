"""Teachers and students that choose among classes instead of writing."""

from __future__ import annotations

from pydantic import Field

from stillroom.contracts.recipe.section import Section


class Prepare(Section):
    """The teacher learns the classes from the labelled questions before it is asked."""

    epochs: float = Field(3.0, gt=0, description="Passes over the labelled questions.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate (AdamW).")
    batch_size: int = Field(32, ge=1, description="Questions in one optimiser step.")


class Masked(Section):
    """More unlabelled texts: copies of the questions with some of their words hidden."""

    copies: int = Field(1, ge=1, description="How many of each question.")
    share: float = Field(0.15, gt=0, lt=1, description="Share of a copy's words that are hidden.")


class Classify(Section):
    """A job of choosing among classes: teacher and student are encoders with a head over the classes."""

    several: bool = Field(
        False,
        description="Several classes may hold at once: right answers are JSON lists of names, or have `|` between them.",
    )
    labels: int | None = Field(
        None,
        ge=1,
        description="Right answers that are used of each class, drawn at random; the other questions count as unlabelled. "
        "Empty: all of them.",
    )
    prepare: Prepare | None = Field(
        None,
        description="Train the teacher on the labelled questions first. Empty: it knows the classes already.",
    )
    masked: Masked | None = Field(
        None,
        description="Copies of the questions with hidden words, which the teacher answers too. Empty: none.",
    )
