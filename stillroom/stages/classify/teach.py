"""The teacher learns the classes where it must, then says of every text what it holds of each class.

teach/teacher/ is the teacher that learned, teach/signals/ its logits, teach/answers.jsonl its likeliest classes.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import write_atomically
from stillroom.contracts.recipe import Distil, Loss, Prepare, Student
from stillroom.contracts.records import content_key
from stillroom.lessons.teach.answered import AnswersFile, answer_of
from stillroom.lessons.teach.asking import requests_of, windows
from stillroom.models.classes import question_text, reply_of
from stillroom.models.classifier import Classifier, TextEncoder
from stillroom.models.opening import WhenAsked
from stillroom.models.origins import teacher_identity
from stillroom.models.references import resolve_model
from stillroom.ranks import once
from stillroom.signals.classes import SHARD, ClassBook
from stillroom.stages.classify.job import ClassJob, Text, places
from stillroom.stages.context import StageContext
from stillroom.training.classifying import ClassObjective, ClassRows, build_classifier, fit_classifier
from stillroom.training.fitting import steps_of
from stillroom.training.keeping import Keeping, write_model

_TOGETHER = 1024
"""Texts read between two words of progress, and answers that are synced together."""


def run(context: StageContext) -> dict[str, Any]:
    """Write teach/teacher/ where it is asked for, teach/signals/ and teach/answers.jsonl.

    Raises:
        DataError: no question has a right answer, or one names a class that the teacher does not know.
        ModelError: the teacher cannot be loaded, or does not know any classes.
    """
    job, folder = ClassJob(context), context.folder
    once(lambda: _forget_others(job, folder))
    counts: dict[str, Any] = {}
    if job.spec.prepare is not None:
        counts["teacher"] = _prepared(job, job.spec.prepare)
    settings = context.recipe.teach
    teacher = WhenAsked(
        context.recipe.teacher.model,
        lambda: Classifier(
            job.teacher,
            dtype=context.recipe.teacher.dtype,
            batch_size=settings.batch_size,
            max_length=context.recipe.distil.max_length,
            trust_remote_code=context.recipe.teacher.trust_remote_code,
        ),
    )
    return counts | once(lambda: _read(job, teacher) | _answered(job))


def _forget_others(job: ClassJob, folder: Path) -> None:
    """Take away what a teacher said that had learned from other questions or in another way."""
    prompts = job.context.run.manifest("prompts")
    identity = teacher_identity(job.recipe.teacher, job.context.run.base)
    mark = content_key(
        identity, prompts and prompts.fingerprint, job.spec.model_dump(mode="json"), job.recipe.seed
    )
    stamp = folder / "classes.mark"
    if not (stamp.is_file() and stamp.read_text() == mark):
        for name in ("signals", "teacher", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("answers.jsonl", "trained.json"):
            with suppress(FileNotFoundError):
                (folder / name).unlink()
        write_atomically(stamp, mark)


def _prepared(job: ClassJob, spec: Prepare) -> dict[str, Any]:
    """Train the teacher on the labelled questions; its counts."""
    context, recipe = job.context, job.recipe
    settings = Distil(
        loss=Loss(hard=1.0, soft=0.0),
        learning_rate=spec.learning_rate,
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        micro_batch_size=min(spec.batch_size, recipe.distil.micro_batch_size),
        max_length=recipe.distil.max_length,
        precision=recipe.distil.precision,
        optimiser=recipe.distil.optimiser,
        checkpoint_every=recipe.distil.checkpoint_every,
    )
    out, trust = context.folder / "teacher", recipe.teacher.trust_remote_code
    origin = resolve_model(recipe.teacher.model, context.run.base)

    def work(checkpoints: Path) -> dict[str, Any]:
        labels = {name: place for place, name in enumerate(job.known)}
        model = build_classifier(
            Student(model=str(origin), trust_remote_code=trust),
            model=origin,
            source=None,
            labels=job.known,
            several=job.spec.several,
            seed=recipe.seed,
        )
        encoder = TextEncoder(origin, model.config, settings.max_length, trust)
        rows = ClassRows(
            (encoder([text])[0], places(names, labels), content_key(text))
            for text, names in job.labelled("train")
        )
        if not len(rows):
            raise DataError("no question to train on has a right answer", do="give labelled questions")
        counts = fit_classifier(
            model,
            rows,
            objective=ClassObjective(len(labels), job.spec.several, hard=1.0, soft=0.0),
            settings=settings,
            steps=steps_of(settings, len(rows)),
            seed=recipe.seed,
            checkpoints=checkpoints,
            metrics=context.folder / "teacher-metrics.jsonl",
            label="preparing the teacher",
            progress=context.progress,
        )

        def write(scratch: Path) -> None:
            model.save_pretrained(scratch)
            encoder.tokenizer.save_pretrained(scratch)

        write_model(out, write)
        return {"labelled": len(rows), **counts}

    mark = content_key(settings.model_dump(mode="json"))
    found = Keeping(context.folder).train("teacher", mark, out, context.folder / "teacher.json", work)
    gc.collect()
    return found


def _read(job: ClassJob, teacher: Any) -> dict[str, Any]:
    """Have the teacher read every text that has no logits yet; whole shards of an earlier attempt stay."""
    folder = job.context.folder / "signals"
    total = sum(1 for _ in _texts(job))
    done = ClassBook.rows_in(folder)
    with job.context.progress.meter("teacher reads", total, "texts", done=done) as meter:

        def shards() -> Iterator[tuple[list[str], Any]]:
            for number, texts in enumerate(windows(_texts(job), SHARD)):
                if number * SHARD < done:
                    continue
                model: Classifier = teacher.teacher
                parts = []
                for some in windows(texts, _TOGETHER):
                    parts.append(model.logits([text.shown(job.spec, model.mark) for text in some]))
                    meter.advance(len(some))
                yield [text.key for text in texts], np.concatenate(parts)

        if done < total:
            labels = teacher.teacher.labels
            for _ in ClassBook.write(folder, labels, shards()):
                pass
    return {"texts": total}


def _texts(job: ClassJob) -> Iterator[Text]:
    for prompt in job.prompts():
        yield from job.texts(question_text(prompt.messages))


def _answered(job: ClassJob) -> dict[str, Any]:
    """The likeliest classes as answers, one line each, as every teacher's."""
    context, recipe = job.context, job.recipe
    book, count, right, checked = ClassBook(context.folder / "signals"), 0, 0, 0
    identity = teacher_identity(recipe.teacher, context.run.base)
    with AnswersFile(context.folder / "answers.jsonl", writable=True) as file:
        for prompts in windows(job.prompts(), _TOGETHER):
            new = []
            for prompt in prompts:
                for request in requests_of(recipe, identity, [prompt]):
                    logits = book[Text(question_text(request.messages)).key]
                    reply = reply_of(logits, book.labels, job.spec.several)
                    count += 1
                    if prompt.reference is not None:
                        checked += 1
                        right += job.classes_of(reply.text) == job.classes_of(prompt.reference)
                    if request.key not in file:
                        new.append(answer_of(request, reply, 0.0))
            file.append(new)
    return {"answers": count, "with a right answer": checked, "of them right": right}
