"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.runfolder import Run


@dataclass(frozen=True)
class StageContext:
    """The run, the stage's own folder, and where to report progress."""

    run: Run
    stage: str
    progress: Progress = field(default_factory=Progress)

    @property
    def recipe(self) -> Recipe:
        """The recipe as resolved."""
        return self.run.recipe

    @property
    def folder(self) -> Path:
        """Where this stage writes."""
        return self.run.folder(self.stage)
