"""What trainings on this machine took in memory beside what their plans said, for the next plan."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from stillroom.contracts.errors import StillroomError
from stillroom.contracts.runfolder import Run
from stillroom.planning.needs import room_of, training_need
from stillroom.planning.pace import Expected, made_here
from stillroom.planning.shapes import shapes_of

_ALIKE = 4
"""How many times larger or smaller another training may be planned: what a process holds beside its tensors does not
grow with them."""


def expected_memory(run: Run, planned: int) -> Expected | None:
    """Bytes that a training planned at so many takes, by the runs beside this one; None where none is like it."""
    found = [
        taken / plan
        for plan, taken in _trainings(run)
        if plan <= _ALIKE * planned and planned <= _ALIKE * plan
    ]
    if not found:
        return None
    return Expected(planned * median(found), planned * min(found), planned * max(found), len(found))


def _trainings(run: Run) -> Iterator[tuple[int, int]]:
    """Bytes of each run's training as it would be planned now, knowing its lessons, and as it was measured."""
    for folder in sorted(run.path.parent.glob("*/distil")):
        if not made_here(folder.parent, "distil"):
            continue
        try:
            other = Run.open(folder.parent)
            teacher, student = shapes_of(other)
        except StillroomError:  # of another version, or its models have gone
            continue
        manifest = other.manifest("distil")
        counts = manifest.counts if manifest else {}
        memory = counts.get("models", {}).get("student", {}).get("memory", {})
        if student and counts.get("lessons") and counts.get("tokens") and memory.get("measured bytes"):
            length = counts["tokens"] / counts["lessons"]
            plan = training_need(other.recipe, student, teacher, length, room_of(None))
            yield plan.total, memory["measured bytes"]
