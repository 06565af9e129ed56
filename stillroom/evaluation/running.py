"""Each model in a process of its own: what it took is its alone."""

from __future__ import annotations

from pathlib import Path

from stillroom.contracts.child import run_child
from stillroom.contracts.progress import Progress
from stillroom.evaluation.job import Job, ModelSpec, Settings
from stillroom.evaluation.results import ModelResult
from stillroom.evaluation.tasks import EvaluationTask


def evaluate_model(
    spec: ModelSpec,
    tasks: list[EvaluationTask],
    settings: Settings,
    *,
    teacher: ModelSpec | None = None,
    answers: Path | None = None,
    progress: Progress | None = None,
) -> ModelResult:
    """Measure one model in a fresh process.

    Args:
        teacher: whose distributions a likelihood task's KL is taken to; None: the loss only.
        answers: JSONL file that keeps replies, so that nothing paid for is asked twice.

    Raises:
        StillroomError: what the process raised.
        Fault: the process died; the message says how.
    """
    job = Job(spec, tasks, settings, teacher, str(answers) if answers else None)
    label = f"evaluating {spec.name}"
    with (progress or Progress()).meter(label, job.size, "items") as meter:
        found = run_child(
            "stillroom.evaluation.worker:work",
            job.to_json(),
            label=label,
            advance=meter.advance,
            relief="lower evaluate.batch_size",
        )
    return ModelResult.from_json(found)
