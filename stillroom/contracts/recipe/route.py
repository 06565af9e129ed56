"""When the student's answer is good enough, and who is asked where it is not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.evaluate import Score
from stillroom.contracts.recipe.models import Teacher
from stillroom.contracts.recipe.section import Section


class Route(Section):
    """A cascade: the student answers what it answers well enough, another model the rest. See docs/cascade.md."""

    escalate_to: Literal["teacher"] | Teacher = Field(
        "teacher", description="Who is asked for the rest: the recipe's teacher, or another model."
    )
    max_error: float | None = Field(
        0.05,
        gt=0,
        lt=1,
        description="Of the answers that the student keeps, at most this share may be worse than the other model's. Empty: "
        "only the caps count.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the proof of that.")
    max_share: float | None = Field(
        None, ge=0, le=1, description="At most this share of the questions is sent on; goes before max_error."
    )
    max_cost: float | None = Field(
        None,
        ge=0,
        description="At most so many US dollars for the other model's answers, of a thousand questions; goes before "
        "max_error. Its price must be known.",
    )
    file: str | None = Field(
        None,
        description="Questions to fit and prove it on, in any form that prompts are read in, which nobody is trained or "
        "measured on; best a sample of what will be asked. Empty: those that splits.calibrate sets apart.",
    )
    limit: int | None = Field(None, ge=1, description="Use at most this many of them.")
    score: Score | None = Field(
        None,
        description="How answers are held against the right ones, as in evaluate.tasks; where no right answer is known, "
        "against the other model's. Empty: as in the first task with one written answer.",
    )
    decide_on: Literal["answer", "question"] = Field(
        "answer",
        description="`answer`: by how sure the student was of every token, which waits for its answer. `question`: by the "
        "question alone, so that an answer can be streamed at once; decides less well.",
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Route:
        if self.max_error is None and self.max_share is None and self.max_cost is None:
            raise ValueError("route has nothing to keep to: set max_error, max_share or max_cost")
        if self.score in ("likelihood", "perplexity", "likeliest", "judge"):
            raise ValueError(
                f"route.score {self.score} does not say whether a written answer is right: take another"
            )
        return self
