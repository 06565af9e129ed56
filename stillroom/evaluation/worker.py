"""What the child process does: one model, all tasks, and what it cost.

The child is started for one model and ends with it, so that the most memory it ever held is that model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.contracts.child import Advance
from stillroom.contracts.records import PROBE, Lesson
from stillroom.evaluation.answering import answer_tasks
from stillroom.evaluation.job import Job, ModelSpec, Settings
from stillroom.evaluation.opening import load_libraries, open_model, open_reader, weigh
from stillroom.evaluation.pace import Pace, measure_pace
from stillroom.evaluation.results import Likelihood, ModelResult


def work(job: str, advance: Advance) -> dict[str, Any]:
    """In the child process: a Job's JSON to a ModelResult's."""
    return measure(Job.from_json(job), advance).to_json()


def measure(job: Job, advance: Advance) -> ModelResult:
    """Everything about one model: answers first, then what it costs, then the held-out lessons.

    Raises:
        ModelError, TeacherError: a model cannot be loaded or reached, or an API does not tell what a task asks.
        ServiceFault: an API failed on some items.
        DataError: a task does not fit the model.
    """
    reads = any(task.ranked or task.texts for task in job.tasks)
    # Before anything is asked that may cost something.
    reader = open_reader(job.spec, job.settings) if reads and job.spec.kind == "api" else None
    libraries = load_libraries(job.spec.kind)
    with _opened(job.spec, job.settings) as model:
        answers = Path(job.answers) if job.answers else None
        found = answer_tasks(
            model,
            job.spec,
            job.tasks,
            job.settings.max_new_tokens,
            answers,
            advance,
            trusted=job.settings.trusted,
        )
        if job.spec.kind == "api":
            return _read(reader, job, found, advance) if reader else found
        figures, writes = found.figures, bool(found.verdicts or found.written)
        if any(task.ranked for task in job.tasks):
            # Not at the top: it brings the tokenizers' library, which an API's process does without.
            from stillroom.evaluation.ranking import rank_tasks

            chosen, choosing = rank_tasks(model, job.tasks, advance)
            # A model's speed is that of its writing, where it writes.
            found, figures = (
                replace(found, verdicts=found.verdicts | chosen),
                figures if writes else choosing,
            )
        if job.spec.kind in ("local", "gguf"):
            advance(0, "one by one")
            figures = replace(figures, pace=_pace(model, job))
        lessons = {task.name: task.lessons for task in job.tasks if task.lessons}
        if lessons and not (writes or found.verdicts):
            _warm_up(model, next(iter(lessons.values()))[0], job.settings.max_length)
        # Before the teacher comes in: its memory is not this model's.
        figures = weigh(model, job.spec, replace(figures, libraries_memory_bytes=libraries))
        return replace(found, likelihoods=_likelihoods(model, job, lessons, advance), figures=figures)


def _read(reader: Any, job: Job, found: ModelResult, advance: Advance) -> ModelResult:
    """What was found out about an API's model, with what its server thinks of options and texts."""
    from stillroom.evaluation.ranking import rank_tasks

    chosen, _ = rank_tasks(reader, job.tasks, advance)
    texts = {task.name: task.texts for task in job.tasks if task.texts}
    likelihoods = _likelihoods(reader, replace(job, teacher=None), texts, advance)
    return replace(found, verdicts=found.verdicts | chosen, likelihoods=likelihoods)


@contextmanager
def _opened(spec: ModelSpec, settings: Settings) -> Iterator[Any]:
    model = open_model(spec, settings)
    try:
        yield model
    finally:
        model.close()


def _pace(model: Any, job: Job) -> Pace | None:
    """Of the first task whose questions are the run's own and answered in writing."""
    own = (task.items for task in job.tasks if not task.ranked and not task.name.startswith(PROBE))
    items = next(filter(None, own), None)
    return measure_pace(model, items) if items else None


def _warm_up(model: Any, lesson: Lesson, longest: int) -> None:
    """One forward pass, so that its buffers are in the peak of a model that answers no items."""
    row = model.renderer.lesson(lesson.messages, lesson.complete, lesson.tools)
    for _ in model.logits([replace(row, ids=row.ids[:longest], mask=row.mask[:longest])]):
        pass


def _likelihoods(
    model: Any, job: Job, lessons: dict[str, list[Lesson]], advance: Advance
) -> dict[str, Likelihood]:
    if not lessons:
        return {}
    # Not at the top: it brings torch, which an API's process does without.
    from stillroom.evaluation.likelihood import likelihood

    texts = {task.name for task in job.tasks if task.score == "perplexity"}

    def each() -> None:
        advance(1, "texts and held-out lessons" if texts else "held-out lessons")

    def read(teacher: Any) -> dict[str, Likelihood]:
        longest = job.settings.max_length
        return {
            task: likelihood(model, teacher, items, longest, each, texts=task in texts)
            for task, items in lessons.items()
        }

    if job.teacher is None:
        return read(None)
    with _opened(job.teacher, job.settings) as teacher:
        return read(teacher)
