"""The teacher answers, and what it thought at each token of its answers goes into the lesson book.

Every answer is one synced line of teach/answers.jsonl, keyed by (model, messages, parameters, sample): change any of
them and it is asked again, change none and never. The book in teach/signals/ is keyed by the lesson's tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.records import Answer, Answerer, Reply, Request
from stillroom.lessons.answered import AnswersFile, answer_of
from stillroom.lessons.asking import read_run_prompts, requests_of, sampling_of, windows
from stillroom.lessons.capture import capture_book
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import student_source, teacher_identity
from stillroom.models.rendering import Renderer
from stillroom.stages.context import StageContext

_WINDOW = 512
"""Questions that a local teacher is given at once. The windows follow from the order of the prompts alone, so a resumed
run repeats the same batches and gets the same tokens."""


def run(context: StageContext) -> dict[str, Any]:
    """Write teach/answers.jsonl and teach/signals/.

    Raises:
        TeacherError: the API refuses.
        ServiceFault: every request failed.
    """
    recipe, base = context.recipe, context.run.base
    tokenizer = student_source(recipe, base)
    renderer = Renderer.load(tokenizer, trust_remote_code=recipe.student.trust_remote_code)
    teacher = WhenAsked(
        recipe.teacher.model,
        lambda: open_teacher(
            recipe.teacher,
            base,
            tokenizer,
            batch_size=recipe.teach.batch_size,
            concurrency=recipe.teach.concurrency,
        ),
    )
    prompts = context.run.need("prompts")
    requests = list(requests_of(recipe, teacher_identity(recipe.teacher, base), read_run_prompts(prompts)))
    try:
        with AnswersFile(context.folder / "answers.jsonl", writable=True) as file:
            counts = _ask(context, teacher, requests, file)
        if recipe.teach.signal.kind != "none":
            with AnswersFile(context.folder / "answers.jsonl") as file:
                answers = (file.read(request.key) for request in requests)
                good = (answer for answer in answers if answer and answer.finish in ("stop", "length"))
                counts |= capture_book(
                    context.folder / "signals",
                    recipe,
                    good,
                    teacher,
                    renderer,
                    context.progress,
                )
    finally:
        teacher.close()
    return counts


def _ask(
    context: StageContext, teacher: Answerer, requests: list[Request], file: AnswersFile
) -> dict[str, Any]:
    """Ask what has no answer yet."""
    earlier = sum(request.key in file for request in requests)
    counts = Counter[str]({"answered before": earlier})
    last_error = None
    with context.progress.meter("teacher answers", len(requests), "answers", done=earlier) as meter:
        for request, reply in _replies(context, teacher, requests, file):
            answer = answer_of(request, reply)
            file.append([answer])
            last_error = answer.error or last_error
            _count(counts, answer)
            meter.advance(1, note=f"{counts['failed']} failed" if counts["failed"] else None)
    if counts["failed"] and counts["failed"] == len(requests) - earlier:
        raise ServiceFault(
            "the teacher answered none of the questions",
            got=last_error,
            do="mend the endpoint and run again: what failed is asked again, what was answered is kept",
        )
    return {"answers": len(requests), **counts}


def _count(counts: Counter[str], answer: Answer) -> None:
    counts[answer.finish] += 1
    counts["prompt tokens"] += answer.prompt_tokens
    counts["completion tokens"] += answer.completion_tokens


def _replies(
    context: StageContext, teacher: Answerer, requests: Iterable[Request], file: AnswersFile
) -> Iterator[tuple[Request, Reply]]:
    """Replies to the requests that have no answer yet."""
    sampling = sampling_of(context.recipe)
    missing = {request.key for request in requests if request.key not in file}
    if not missing:
        return
    if context.recipe.teacher.api:
        yield from teacher.answer((request for request in requests if request.key in missing), sampling)
        return
    for window in windows(requests, _WINDOW):
        if any(request.key in missing for request in window):
            # A half-done window is computed whole again: a row's last digits depend on the batch that it is in.
            for request, reply in teacher.answer(window, sampling):
                if request.key in missing:
                    yield request, reply
