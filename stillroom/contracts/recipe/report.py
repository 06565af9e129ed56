"""What the report's verdict goes by."""

from __future__ import annotations

from pydantic import Field

from stillroom.contracts.recipe.section import Section


class Report(Section):
    """What the report's verdict goes by; a change of it measures nothing again."""

    keep: float = Field(
        0.95,
        gt=0,
        le=1,
        description="How much of the teacher's score, on every task with right answers, a student must keep to be shipped; "
        "the lower end of the 95 % interval counts.",
    )
    dollars_an_hour: float | None = Field(
        None,
        ge=0,
        description="What an hour of the machine that runs the student costs, in US dollars, for the sums of cost. Empty: "
        "not counted.",
    )
