"""The student as its teacher's draft: both files, the command, and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Draft
from stillroom.contracts.records import Message
from stillroom.evaluation.speculative import Speculation, speculate
from stillroom.gguf import export_once
from stillroom.models.references import resolve_model
from stillroom.stages.context import StageContext
from stillroom.stages.export.handing import bring, script, serve_command

_ANSWER = 256
"""Most tokens of an answer while it is measured."""


@dataclass(frozen=True)
class Drafted:
    """What is handed over for it, and the figures for the manifest and the card."""

    files: list[Path]
    figures: dict[str, Any]


def draft_for_teacher(context: StageContext, student: Path) -> Drafted:
    """The teacher's file beside the student's, run-with-draft.sh, and how much of what the student writes is accepted.

    Raises:
        RecipeError: the teacher's weights are not here, or there are no questions to measure on.
        ModelError: the teacher cannot be converted, or llama.cpp cannot use the student as its draft.
    """
    spec = context.recipe.export.draft
    assert spec is not None
    teacher = _teacher_file(context, spec)
    measured = _measured(context, spec, teacher, student)
    context.progress.say(
        f"the teacher accepts {measured.acceptance:.0%} of what the student writes ahead: "
        f"{measured.speedup:.2f} times as fast on this machine"
    )
    more = ("-md", student.name, "--spec-type", "draft-simple", "--spec-draft-n-max", str(spec.tokens))
    starts = script(context.folder / "run-with-draft.sh", serve_command(context.recipe, teacher, *more))
    figures = {**asdict(measured), "acceptance": measured.acceptance, "speedup": measured.speedup}
    return Drafted([teacher, starts], {"teacher": teacher.name, **figures})


def _teacher_file(context: StageContext, spec: Draft) -> Path:
    """The teacher as a GGUF file in the folder."""
    teacher = context.recipe.teacher
    found = None if teacher.api else resolve_model(teacher.model, context.run.base)
    if not isinstance(found, Path):
        raise RecipeError(
            "the student can only be the draft of a teacher whose weights are here",
            got=f"teacher.model: {teacher.model}" + (f" at {teacher.api}" if teacher.api else ""),
            expected="a Hugging Face folder or a .gguf file",
            do="take export.draft out, or give the teacher as a folder",
        )
    if found.is_file():
        return bring(context, found)
    return export_once(found, context.folder / f"teacher-{spec.kind}.gguf", spec.kind, overwrite=True)


def _measured(context: StageContext, spec: Draft, teacher: Path, student: Path) -> Speculation:
    conversations = _questions(context, spec.questions)
    with context.progress.meter("measuring the draft", 2 * len(conversations), "answers") as meter:
        return speculate(
            teacher,
            student,
            conversations,
            draft_tokens=spec.tokens,
            max_new_tokens=min(_ANSWER, context.recipe.evaluate.max_new_tokens),
            context=context.recipe.export.context,
            meter=meter,
        )


def _questions(context: StageContext, count: int) -> list[list[Message]]:
    """Questions that nobody was trained on, as they are asked."""
    system = context.recipe.teach.system
    found: list[list[Message]] = []
    for line in read_lines(context.run.need("prompts") / "prompts.jsonl"):
        if line["split"] == "tune" and len(found) < count:
            messages = line["messages"]
            asks = system and messages[0]["role"] != "system"
            found.append([{"role": "system", "content": system}, *messages] if asks else messages)
    if not found:
        raise RecipeError(
            "the draft has no questions to be measured on",
            got=f"splits.tune: {context.recipe.splits.tune}",
            expected="some questions held out of training",
            do="raise splits.tune, or take export.draft out",
        )
    return found
