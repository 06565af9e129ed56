"""Answers become lessons, or rejects with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import whole_lines, write_atomically
from stillroom.contracts.recipe import Teacher
from stillroom.contracts.records import Answer, to_line
from stillroom.lessons.filter.certainty import certainty, from_alternatives
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.facts import reviewed_ids
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Helpers
from stillroom.lessons.filter.headroom import Headroom, Lead
from stillroom.lessons.judging import Judge, open_judge
from stillroom.lessons.prompts.documents import read_texts
from stillroom.lessons.prompts.questions import user_text
from stillroom.lessons.prompts.sources import evaluation_sources
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.answers import lesson_messages
from stillroom.lessons.teach.asking import read_run_prompts, requests_of, tools_of
from stillroom.models.endpoint import base_url
from stillroom.models.opening import open_teacher
from stillroom.models.origins import student_source, teacher_identity
from stillroom.models.references import resolve_model
from stillroom.models.teachers import Terms, terms_of
from stillroom.report.cards import dataset_card
from stillroom.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Write filter/lessons.jsonl, rejected.jsonl, preferences.jsonl and review.jsonl (where there is anything in them) and
    dataset-card.md.

    Raises:
        DataError: no lesson is left, or a file of a check is not usable.
        Fault: code cannot be confined on this machine.
        TeacherError, ServiceFault: from the judge.
        ModelError: a model that is asked cannot be loaded.
    """
    folder, recipe = context.folder, context.recipe
    paths = [folder / f"{name}.jsonl" for name in ("lessons", "rejected", "preferences", "review")]
    with ExitStack() as stack:
        filtering = Filtering(recipe.filter, context.run.base, _held_out(context), _helpers(context, stack))
        keep, reject, prefer, look = (stack.enter_context(whole_lines(path)) for path in paths)
        meter = stack.enter_context(context.progress.meter("filtering", None, "questions"))
        for sifted in filtering.sift(_groups(context)):
            meter.advance()
            for lesson in sifted.lessons:
                keep(to_line(lesson))
            for rejected in sifted.rejected:
                reject(to_line(rejected))
            for pair in sifted.pairs:
                prefer(pair)
            for line in sifted.review:
                look(line)
    for path in paths[2:]:
        if not path.stat().st_size:
            path.unlink()
    summary = filtering.summary()
    if not summary["train"]:
        why = ", ".join(f"{reason}: {count}" for reason, count in filtering.tally.reasons.most_common())
        raise DataError(
            "no lesson is left",
            got=why or "there were no answers",
            do=f"look at {paths[1]}; loosen filter, or mend the prompts or the teacher",
        )
    if filtering.headroom and (lead := _lead(context, filtering, filtering.headroom)):
        summary["lead"] = lead.summary()
        summary["warnings"] += [lead.warning] if lead.warning else []
    for warning in summary["warnings"]:
        context.progress.say(warning)
    manifest = context.run.manifest("teach")
    card = dataset_card(summary, recipe, terms=_terms(context), teach=manifest.counts if manifest else {})
    write_atomically(folder / "dataset-card.md", card)
    return summary


def _helpers(context: StageContext, stack: ExitStack) -> Helpers:
    """The models that the recipe has asked about the answers, opened when they are first needed."""
    recipe, rule, base = context.recipe, context.recipe.filter, context.run.base
    signals = context.run.need("teach") / "signals"
    return Helpers(
        judge=_judge(context, rule.judge, stack) if rule.judge else None,
        contrast=_contrast(rule.contrast, base, stack) if rule.contrast else None,
        sure=certainty(signals, lambda: student_source(recipe, base))
        if rule.facts != "none"
        else from_alternatives,
        reviewed=reviewed_ids(rule, base),
    )


def _judge(context: StageContext, judge: Teacher, stack: ExitStack) -> Judge:
    file = stack.enter_context(AnswersFile(context.folder / "judgements.jsonl", writable=True))
    return open_judge(judge, context.run, context.stage, file, stack, context.progress.say)


def _contrast(name: str, base: Path, stack: ExitStack) -> Callable[[Sequence[Answer]], list[float | None]]:
    # Torch and a model are large, and few recipes ask for them here.
    from stillroom.lessons.filter.contrast import differences
    from stillroom.models.local import LocalModel

    return partial(differences, LocalModel(resolve_model(name, base)))


def _lead(context: StageContext, filtering: Filtering, headroom: Headroom) -> Lead | None:
    """How much better the teacher is than the student before its training, where that one can answer."""
    recipe, student = context.recipe, context.recipe.student
    if student.model is None:
        context.progress.say(
            "filter.student_sample: a pruned or fresh student cannot answer before its training"
        )
        return None
    origin = Teacher(model=student.model, trust_remote_code=student.trust_remote_code)
    model = open_teacher(
        origin,
        context.run.base,
        None,
        batch_size=recipe.teach.batch_size,
        concurrency=recipe.teach.concurrency,
    )
    try:
        return headroom.compare(
            model, filtering.verify, system=recipe.teach.system, max_new_tokens=recipe.teach.max_new_tokens
        )
    finally:
        model.close()


def _terms(context: StageContext) -> Terms:
    """What the teacher's terms say."""
    teacher = context.recipe.teacher
    own = context.run.locate(teacher.prices) if teacher.prices else None
    return terms_of(teacher.model, base_url(teacher.api) if teacher.api else None, own)


def _held_out(context: StageContext) -> HeldOut:
    """The questions of all evaluation files, and the run's own where it is measured on those it held out."""
    recipe, held_out, done = context.recipe, HeldOut(), set[str]()
    for source in evaluation_sources(recipe):
        if source.file not in done:
            done.add(source.file)
            path = context.run.locate(source.file)
            held_out.add(path, path.name, source)
    for task in recipe.evaluate.tasks:
        if task.file and task.score == "perplexity":
            path = context.run.locate(task.file)
            held_out.add_questions((["".join(lines)] for lines in read_texts(task, path)), path.name)
    if recipe.measured_on_held_out:
        prompts = context.run.need("prompts")
        held_out.add_own(([text] for text in _bare(prompts, "tune")), _bare(prompts, "train"))
    return held_out


def _bare(prompts: Path, split: str) -> Iterator[str]:
    """What a split's questions ask, without the document that they are asked about: many questions share that."""
    for prompt in read_run_prompts(prompts):
        if prompt.split == split:
            asked = user_text(prompt.messages)
            yield asked.replace(prompt.document, "") if prompt.document else asked


def _groups(context: StageContext) -> Iterator[Group]:
    """The questions with the answers to the recipe's requests, in the order of the prompts."""
    recipe = context.recipe
    identity = teacher_identity(recipe.teacher, context.run.base)
    with AnswersFile(context.run.need("teach") / "answers.jsonl") as file:
        for prompt in read_run_prompts(context.run.need("prompts")):
            tools = tools_of(prompt, recipe.teach.parameters)
            found = (file.read(request.key) for request in requests_of(recipe, identity, [prompt]))
            answers = [
                _as_lesson(replace(answer, tools=tools), recipe.teach.reasoning) for answer in found if answer
            ]
            yield Group(prompt, answers, tools, prompt.check, prompt.document)


def _as_lesson(answer: Answer, reasoning: bool) -> Answer:
    """The answer with its last turn as the student learns it."""
    messages = lesson_messages(answer.messages, reasoning=reasoning)
    thought = answer.messages[-1].get("reasoning_content") and not reasoning
    # What the teacher told of the whole text does not hold of a part of it.
    return replace(answer, messages=messages, logprob=None if thought else answer.logprob)
