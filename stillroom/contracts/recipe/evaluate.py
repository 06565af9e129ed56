"""What the models are measured on, and how."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.section import Section


class Task(Section):
    """One thing that the models are measured on."""

    file: str | None = Field(
        None, description="JSONL of chat messages with a `reference`. Empty with `score: likelihood`."
    )
    score: Literal["json", "exact", "likelihood"] = Field(
        description="`json`: every field of the JSON answer must be right. `exact`: the answer's text must be equal. "
        "`likelihood`: loss and KL to the teacher on the held-out lessons."
    )
    name: str | None = Field(None, description="What the report calls it. Empty: the file's name.")
    limit: int | None = Field(None, ge=1, description="Use at most this many items.")

    @model_validator(mode="after")
    def _file(self) -> Task:
        if (self.file is None) != (self.score == "likelihood"):
            raise ValueError("a task needs a file, except `score: likelihood`, which takes none")
        return self

    @property
    def title(self) -> str:
        """The task's name in results and report."""
        return self.name or (re.sub(r".*/|\.[a-z.]+$", "", self.file) if self.file else "held-out lessons")


class Evaluate(Section):
    """How the models are measured."""

    tasks: list[Task] = Field([], description="What the models are measured on.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(64, ge=1, description="Questions answered at once.")

    @model_validator(mode="after")
    def _own_titles(self) -> Evaluate:
        titles = [task.title for task in self.tasks]
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two tasks are called {', '.join(sorted(twice))}: give each its own name")
        return self
