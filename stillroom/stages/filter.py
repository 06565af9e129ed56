"""Answers become lessons, or rejects with their reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines, whole_lines, write_atomically
from stillroom.contracts.records import Prompt, from_line, to_line
from stillroom.lessons.answered import AnswersFile
from stillroom.lessons.answers import lesson_messages
from stillroom.lessons.asking import requests_of
from stillroom.lessons.contamination import HeldOut
from stillroom.lessons.filtering import Filtering, Group
from stillroom.models.endpoint import base_url
from stillroom.models.origins import teacher_identity
from stillroom.models.teachers import Terms, terms_of
from stillroom.report.cards import dataset_card
from stillroom.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Write filter/lessons.jsonl, rejected.jsonl, preferences.jsonl (where pairs were found) and dataset-card.md.

    Raises:
        DataError: no lesson is left, or a file of a check is not usable.
        Fault: code cannot be confined on this machine.
    """
    folder, recipe = context.folder, context.recipe
    filtering = Filtering(recipe.filter, context.run.base, _held_out(context))
    paths = [folder / f"{name}.jsonl" for name in ("lessons", "rejected", "preferences")]
    with (
        whole_lines(paths[0]) as keep,
        whole_lines(paths[1]) as reject,
        whole_lines(paths[2]) as prefer,
        context.progress.meter("filtering", None, "questions") as meter,
    ):
        for sifted in filtering.sift(_groups(context)):
            meter.advance()
            for lesson in sifted.lessons:
                keep(to_line(lesson))
            for rejected in sifted.rejected:
                reject(to_line(rejected))
            for pair in sifted.pairs:
                prefer(pair)
    summary = filtering.summary()
    if not summary["pairs"]:
        paths[2].unlink()
    if not summary["train"]:
        why = ", ".join(f"{reason}: {count}" for reason, count in filtering.reasons.most_common())
        raise DataError(
            "no lesson is left",
            got=why or "there were no answers",
            do=f"look at {paths[1]}; loosen filter, or mend the prompts or the teacher",
        )
    for warning in summary["warnings"]:
        context.progress.say(warning)
    manifest = context.run.manifest("teach")
    card = dataset_card(summary, recipe, terms=_terms(context), teach=manifest.counts if manifest else {})
    write_atomically(folder / "dataset-card.md", card)
    return summary


def _terms(context: StageContext) -> Terms:
    """What the teacher's terms say."""
    teacher = context.recipe.teacher
    own = context.run.locate(teacher.prices) if teacher.prices else None
    return terms_of(teacher.model, base_url(teacher.api) if teacher.api else None, own)


def _held_out(context: StageContext) -> HeldOut:
    """The questions of all evaluation files."""
    recipe, held_out = context.recipe, HeldOut()
    for name in dict.fromkeys(
        [task.file for task in recipe.evaluate.tasks if task.file] + recipe.filter.decontaminate
    ):
        path = context.run.locate(name)
        held_out.add(path, path.name)
    return held_out


def _groups(context: StageContext) -> Iterator[Group]:
    """The questions with the answers to the recipe's requests, in the order of the prompts."""
    recipe = context.recipe
    identity = teacher_identity(recipe.teacher, context.run.base)
    with AnswersFile(context.run.need("teach") / "answers.jsonl") as file:
        for line in read_lines(context.run.need("prompts") / "prompts.jsonl"):
            prompt = from_line(Prompt, line)
            found = (file.read(request.key) for request in requests_of(recipe, identity, [prompt]))
            answers = [
                replace(answer, messages=lesson_messages(answer.messages, reasoning=recipe.teach.reasoning))
                for answer in found
                if answer
            ]
            yield Group(prompt, answers, line.get("tools"), line.get("check"), line.get("document"))
