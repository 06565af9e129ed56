"""What can be done with a model: measure it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from stillroom.cli.results import show_results
from stillroom.contracts.errors import UserError

verbs = typer.Typer()


class Score(enum.Enum):
    """How `stillroom eval` judges an answer."""

    json = "json"
    exact = "exact"
    number = "number"
    maths = "maths"
    choice = "choice"
    likeliest = "likeliest"
    tools = "tools"
    code = "code"
    quotes = "quotes"
    perplexity = "perplexity"


@verbs.command(
    name="eval",
    epilog="Examples: stillroom eval runs/tickets; stillroom eval model.gguf --file eval.jsonl; "
    "stillroom eval runs/tickets --lm-eval hellaswag,arc_easy --limit 500",
)
def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a Hugging Face or ONNX folder or a .gguf file; with --api a model's name."
        ),
    ],
    file: Annotated[Optional[Path], typer.Option(help="Items to measure a model on.")] = None,  # noqa: UP045
    score: Annotated[Score, typer.Option(help="How answers are held against the right ones.")] = Score.json,
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Tokenizer folder of a .gguf file, or of an API's model that ranks options or reads texts."
        ),
    ] = None,
    api: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Base URL of an OpenAI-compatible API, whose key is in $OPENAI_API_KEY."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="Use at most this many items.")] = None,  # noqa: UP045
    lm_eval: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--lm-eval",
            help="Tasks of lm-eval, commas between them, for a folder, or for a run's teacher and student.",
        ),
    ] = None,
    lm_eval_tasks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--lm-eval-tasks", help="Folder of lm-eval tasks of your own."),
    ] = None,
) -> None:
    """Measure a run's models again, or any model on a file of questions with right answers, or by lm-eval."""
    from stillroom.contracts.runfolder import Run
    from stillroom.display import open_progress

    if lm_eval is not None:
        _by_harness(path, lm_eval.split(","), lm_eval_tasks, limit)
        return
    if api is None and Run.is_run(path):
        from stillroom.pipeline import run_pipeline

        found = Run.open(path)
        found.need("quantise")
        with found.locked():
            run_pipeline(found, open_progress(), until="evaluate", again="evaluate")
        show_results(found)
        return
    if file is None:
        raise UserError(
            "a model needs items to be measured on", do="--file eval.jsonl, lines with messages and reference"
        )
    from stillroom.contracts.recipe import Task
    from stillroom.evaluation import ModelSpec, evaluate, kind_of
    from stillroom.stages.evaluate import read_file

    kind = kind_of(path) if api is None else "api"
    spec = ModelSpec(path.name, kind, str(path), tokenizer=tokenizer, api=api)
    task = read_file(Task(file=str(file), score=score.value, limit=limit), file)
    for row in evaluate([spec], [task], progress=open_progress()).rows:
        if row.at is None:
            interval = (
                f"  [{row.low:.4f}, {row.high:.4f}]" if row.low is not None and row.high is not None else ""
            )
            print(f"{row.metric:<24} {row.value:{',.0f' if row.value >= 1000 else ',.4f'}}{interval}")


def _by_harness(path: Path, tasks: list[str], include: Path | None, limit: int | None) -> None:
    """A folder, or a run's teacher and student, on tasks of lm-eval."""
    from stillroom.contracts.runfolder import Run
    from stillroom.evaluation.harness import harness_rows
    from stillroom.models.references import resolve_model

    models = {path.name: path}
    trusted = False
    if Run.is_run(path):
        run = Run.open(path)
        run.need("distil")
        models = {"student": run.student}
        trusted = run.recipe.student.trust_remote_code
        if not run.recipe.teacher.api:
            teacher = resolve_model(run.recipe.teacher.model, run.base)
            if isinstance(teacher, Path) and teacher.is_dir():
                models = {"teacher": teacher, **models}
    for name, folder in models.items():
        for row in harness_rows(name, folder, tasks, include=include, limit=limit, trust_remote_code=trusted):
            interval = f"  [{row.low:.4f}, {row.high:.4f}]" if row.low is not None else ""
            print(f"{name:<12} {row.task:<24} {row.metric:<24} {row.value:.4f}{interval}")
