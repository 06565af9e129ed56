"""The teacher answers, and what it thought at each token of its answers goes into the lesson book.

Every answer is one synced line of teach/answers.jsonl, keyed by (endpoint, model, messages, parameters, sample): change
any of them and it is asked again, change none and never. The book in teach/signals/ is keyed by the lesson's tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.contracts.files import write_atomically
from stillroom.contracts.recipe import Recipe, Teacher
from stillroom.contracts.records import Answer, Answerer, Reply, Request, Sampling
from stillroom.lessons.teach.answered import AnswersFile, spent_by_others
from stillroom.lessons.teach.asking import (
    LoggedRequest,
    beginnings_together,
    read_run_prompts,
    requests_of,
    sampling_of,
    take_logged,
    teacher_weights,
    tools_of,
    windows,
)
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.capture import capture_book
from stillroom.lessons.teach.outlook import look_ahead, outlook_lines
from stillroom.lessons.teach.teach_settings import check_ways
from stillroom.lessons.teach.teaching import Panel, conclude, teach
from stillroom.models.api_teacher import open_api_teacher
from stillroom.models.endpoint import base_url
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import student_source, teacher_identity
from stillroom.models.rendering import Renderer
from stillroom.models.teachers import check_terms, price_of, terms_of
from stillroom.stages.context import StageContext

_WINDOW = 512
"""Questions that a local teacher is given at once. The windows follow from the order of the prompts alone, so a resumed
run repeats the same batches and gets the same tokens."""


def run(context: StageContext) -> dict[str, Any]:
    """Write teach/answers.jsonl and teach/signals/.

    Raises:
        TeacherError: the API refuses, or the teacher's terms forbid this.
        ServiceFault: every request failed.
        UserError: the limit of costs is reached.
    """
    recipe, base = context.recipe, context.run.base
    check_ways(recipe.teacher, recipe.teach)
    tokenizer = student_source(recipe, base)
    renderer = Renderer.load(tokenizer, trust_remote_code=recipe.student.trust_remote_code)
    identity = teacher_identity(recipe.teacher, base)

    def requests() -> Iterator[Request]:
        return requests_of(recipe, identity, read_run_prompts(context.run.need("prompts")))

    teacher = _teacher(context)
    try:
        with AnswersFile(context.folder / "answers.jsonl", writable=True) as file:
            counts = _ask(context, teacher, requests, file)
        if recipe.teach.signal.kind != "none":
            with AnswersFile(context.folder / "answers.jsonl") as file:
                good = _good_answers(recipe, identity, context, file)
                book = _book_of(context, "signals", recipe.teacher)
                scorer = _scorer(teacher, recipe.teacher, renderer)
                counts |= capture_book(book, recipe, good, scorer, renderer, context.progress)
    finally:
        teacher.close()
    if recipe.more_teachers:
        counts["more teachers"] = _others(context, identity, renderer)
    return counts


def _others(context: StageContext, identity: str, renderer: Renderer) -> dict[str, Any]:
    """What the other teachers think of the first one's answers, a book each; one is in memory at a time."""
    recipe, found = context.recipe, {}
    for number, spec in enumerate(recipe.more_teachers, 2):
        model = _local(context, spec)
        context.progress.say(f"  teacher {number}: {spec.model}")
        try:
            with AnswersFile(context.folder / "answers.jsonl") as file:
                found[f"{number}: {spec.model}"] = capture_book(
                    _book_of(context, f"signals-{number}", spec),
                    recipe.model_copy(update={"teacher": spec}),
                    _good_answers(recipe, identity, context, file, number),
                    _scorer(model, spec, renderer),
                    renderer,
                    context.progress,
                )
        finally:
            model.close()
    return found


def _scorer(model: Any, spec: Teacher, renderer: Renderer) -> Any:
    """Who tells logits over the student's tokens: the teacher, or what is carried over from its own."""
    if spec.tokens == "student":
        return model
    from stillroom.models.carrying import CarriedTeacher

    return CarriedTeacher(model, renderer)


def _book_of(context: StageContext, name: str, teacher: Teacher) -> Path:
    """The folder of a teacher's book, without what another model at the same place has left there."""
    folder, stamp = context.folder / name, context.folder / f"{name}.origin"
    identity = teacher_identity(teacher, context.run.base)
    if stamp.is_file() and stamp.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
    write_atomically(stamp, identity)
    return folder


def _good_answers(
    recipe: Recipe,
    identity: str,
    context: StageContext,
    file: AnswersFile,
    teacher: int = 1,
) -> Iterator[Answer]:
    """The answers that may become lessons and that this teacher, counted from 1, is heard of, in the order of their
    requests, each with its question's tools: the lesson is laid out with them. The first one's book holds them all."""
    answers = _with_tools(recipe, identity, context, file, teacher)
    return (answer for answer in answers if answer.finish in ("stop", "length"))


def _with_tools(
    recipe: Recipe,
    identity: str,
    context: StageContext,
    file: AnswersFile,
    teacher: int,
) -> Iterator[Answer]:
    for prompt in read_run_prompts(context.run.need("prompts")):
        if teacher > 1 and not teacher_weights(recipe, prompt.source)[teacher - 1]:
            continue
        for request in requests_of(recipe, identity, [prompt]):
            if answer := file.read(request.key):
                yield replace(answer, tools=tools_of(prompt, recipe.teach.parameters))


def _teacher(context: StageContext) -> Answerer:
    """The teacher, loaded or connected when something is first asked of it."""
    recipe = context.recipe
    settings = recipe.teach
    if recipe.teacher.api:
        batches = context.folder / "batches"
        return WhenAsked(recipe.teacher.model, lambda: open_api_teacher(recipe.teacher, settings, batches))
    return _local(context, recipe.teacher)


def _local(context: StageContext, teacher: Teacher) -> WhenAsked:
    """A teacher on this machine, loaded when something is first asked of it."""
    recipe, base = context.recipe, context.run.base
    tokenizer = student_source(recipe, base)
    sizes = {"batch_size": recipe.teach.batch_size, "concurrency": recipe.teach.concurrency}
    return WhenAsked(teacher.model, lambda: open_teacher(teacher, base, tokenizer, **sizes))


def _ask(
    context: StageContext, teacher: Answerer, requests: Callable[[], Iterator[Request]], file: AnswersFile
) -> dict[str, Any]:
    """Ask what has no answer yet, after saying what that will come to."""
    recipe, settings = context.recipe, context.recipe.teach
    url = base_url(recipe.teacher.api) if recipe.teacher.api else None
    own = context.run.locate(recipe.teacher.prices) if recipe.teacher.prices else None
    price, terms = price_of(recipe.teacher.model, url, own), terms_of(recipe.teacher.model, url, own)
    check_terms(recipe.teacher.model, terms, accepted=recipe.teacher.accept_terms)
    sampling = sampling_of(recipe)
    bill = Bill(
        price,
        sampling,
        spent=file.totals.cost + spent_by_others(context.run, "teach"),
        limit=settings.max_cost,
        batch=settings.batch_endpoint,
        parameters=settings.parameters,
    )
    outlook = look_ahead(requests(), file, settings.parameters)
    if outlook.missing or outlook.logged:
        for line in outlook_lines(outlook, file.totals, recipe.teacher, settings, price, terms):
            context.progress.say(f"  {line}")
    answerer = teacher if recipe.teacher.api else _WholeWindows(teacher, requests)
    with context.progress.meter(
        "teacher answers", outlook.requests, "answers", done=outlook.answered
    ) as meter:
        panel = Panel(meter, outlook.requests, outlook.answered)
        asked = beginnings_together(requests()) if recipe.teacher.api else requests()
        taught = teach(take_logged(asked, file), answerer, sampling, file, bill, panel)
    conclude(taught, bill)
    return {
        "answers": outlook.requests,
        "from logs": outlook.logged.total(),
        "answered before": outlook.answered - outlook.logged.total(),
        **taught.counts,
        "dollars": round(file.totals.cost, 6),
        "terms": terms.model_dump(mode="json", exclude={"models", "hosts"}, exclude_none=True),
    }


class _WholeWindows:
    """A local teacher that computes half-done windows whole: a row's last digits depend on the batch that it is in."""

    def __init__(self, teacher: Answerer, requests: Callable[[], Iterator[Request]]) -> None:
        self.name, self._teacher, self._requests = teacher.name, teacher, requests

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """As `Answerer.answer`; the requests come in the order of the whole list."""
        missing = iter(requests)
        wanted = next(missing, None)
        asked = (request for request in self._requests() if not isinstance(request, LoggedRequest))
        for window in windows(asked, _WINDOW):
            keys, due = {request.key for request in window}, set[str]()
            while wanted is not None and wanted.key in keys:
                due.add(wanted.key)
                wanted = next(missing, None)
            if due:
                for request, reply in self._teacher.answer(window, sampling):
                    if request.key in due:
                        due.discard(request.key)
                        yield request, reply

    def close(self) -> None:
        """The teacher is closed by who opened it."""
