"""How good is a model, how sure is it, what does it cost: measured, with intervals, model beside model.

from stillroom.evaluation import ModelSpec, evaluate, load_task

task = load_task(Path("eval.jsonl"), "json", "tickets")
results = evaluate(
    [ModelSpec("teacher", "local", "teacher-folder"), ModelSpec("student", "gguf", "student-Q4_K_M.gguf")],
    [task],
    teacher="teacher",
)
for row in results.rows:
    print(row.model, row.task, row.metric, row.value, row.low, row.high)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stillroom.contracts.progress import Progress
from stillroom.contracts.records import ResultRow
from stillroom.evaluation.comparison import compare_models, retention
from stillroom.evaluation.job import ModelSpec, Settings, kind_of
from stillroom.evaluation.results import Figures, Likelihood, ModelResult
from stillroom.evaluation.running import evaluate_model
from stillroom.evaluation.scoring import Verdict
from stillroom.evaluation.tasks import EvaluationTask, Item, held_out_lessons, load_task
from stillroom.stats import expected_calibration_error

__all__ = [
    "EvaluationTask",
    "Figures",
    "Item",
    "Likelihood",
    "ModelResult",
    "ModelSpec",
    "Results",
    "Settings",
    "Verdict",
    "compare_models",
    "evaluate",
    "evaluate_model",
    "expected_calibration_error",
    "held_out_lessons",
    "kind_of",
    "load_task",
    "retention",
]


@dataclass(frozen=True)
class Results:
    """What `evaluate` found: each model's verdicts and figures, and the rows drawn from them."""

    models: list[ModelResult]
    rows: list[ResultRow]


def evaluate(
    models: Sequence[ModelSpec],
    tasks: Sequence[EvaluationTask],
    *,
    settings: Settings | None = None,
    teacher: str | None = None,
    pairs: Iterable[tuple[str, str]] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Results:
    """Measure models one after the other, each in a process of its own, and hold them together.

    Args:
        teacher: the name among `models` that retention is taken against and KL is taken to.
        pairs: (model, other) whose difference is tested.
        seed: of the bootstrap intervals.

    Raises:
        StillroomError: a model cannot be loaded, reached or measured.
    """
    live = next((spec for spec in models if spec.name == teacher and spec.kind != "api"), None)
    results = [
        evaluate_model(
            spec,
            list(tasks),
            settings or Settings(),
            teacher=None if spec == live else live,
            progress=progress,
        )
        for spec in models
    ]
    return Results(results, compare_models(results, teacher=teacher, pairs=pairs, seed=seed))
