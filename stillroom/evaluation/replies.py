"""Bare replies, kept as they come: for whoever needs more of an answer than its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.contracts.child import Advance, run_child
from stillroom.contracts.progress import Progress
from stillroom.contracts.records import Reply
from stillroom.evaluation.answering import keep_replies, kept_replies
from stillroom.evaluation.job import Job, ModelSpec, Settings
from stillroom.evaluation.opening import open_model
from stillroom.evaluation.tasks import EvaluationTask, Item


def ask_model(
    spec: ModelSpec, items: list[Item], settings: Settings, path: Path, progress: Progress | None = None
) -> list[Reply]:
    """A reply an item, in their order, each drawn greedily; the model runs in a process of its own.

    Args:
        path: JSONL file that keeps the replies, each synced before it counts; what stands there is not asked again. Of one
            model and its settings: an item is known by its text alone.

    Raises:
        ModelError, TeacherError: the model cannot be loaded or reached.
        ServiceFault: an API failed on some items.
        Fault: the process died.
    """
    known = kept_replies(spec, items, settings.max_new_tokens, path)
    if None not in known:
        return [reply for reply in known if reply is not None]
    job = Job(spec, [EvaluationTask("questions", "exact", items=items)], settings, answers=str(path))
    with (progress or Progress()).meter(f"asking {spec.name}", len(items), "answers") as meter:
        run_child(
            "stillroom.evaluation.replies:work",
            job.to_json(),
            label=f"asking {spec.name}",
            advance=meter.advance,
            relief="lower evaluate.batch_size",
        )
    return [reply for reply in kept_replies(spec, items, settings.max_new_tokens, path) if reply is not None]


def work(text: str, advance: Advance) -> dict[str, Any]:
    """In the child process: ask what has no reply yet."""
    job = Job.from_json(text)
    assert job.answers is not None
    model = open_model(job.spec, job.settings)
    try:
        keep_replies(
            model, job.spec, job.tasks[0].written, job.settings.max_new_tokens, Path(job.answers), advance
        )
    finally:
        model.close()
    return {}
