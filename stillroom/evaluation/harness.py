"""EleutherAI's lm-evaluation-harness, for the benchmarks that have no form of ours: its tasks, its scores, its errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError, MissingExtra, ModelError
from stillroom.contracts.records import ResultRow

_TWO_SIDED = 1.96
_STDERR = "_stderr"


def harness_rows(
    name: str,
    folder: Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    trust_remote_code: bool = False,
) -> list[ResultRow]:
    """A model's scores on tasks of lm-eval; natural text is shown without a chat template, as its leaderboards do.

    Args:
        name: the model's, in the rows.
        folder: Hugging Face folder.
        tasks: lm-eval's names. Most of its data come from a hub.
        include: a folder of tasks of one's own, in its YAML.
        limit: the first so many items of each.
        batch_size: texts at once.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        A row a task and score; `low` and `high` from its standard error, where it has one.

    Raises:
        MissingExtra: lm-eval is not installed.
        ModelError: the model is no folder.
        DataError: lm-eval does not know a task, or cannot get its data.
    """
    try:
        import torch
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra(
            "lm-eval is not installed", got=error, do="pip install 'stillroom[harness]'"
        ) from error
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model that lm-eval can load here",
            expected="a Hugging Face folder",
            do="give the folder that a file was made of",
        )
    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise DataError(
            f"lm-eval has no task {', '.join(unknown)}",
            got=f"lm-eval {_version()}" + (f" and {include}" if include else ""),
            do="look at: lm-eval ls tasks; tasks of your own are given with --lm-eval-tasks FOLDER",
        )
    model = HFLM(
        pretrained=str(folder),
        batch_size=batch_size,
        dtype="auto",
        # Left to itself it takes CUDA, also where torch has none.
        device="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=trust_remote_code,
    )
    try:
        found = simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            "lm-eval could not measure this",
            got=f"{type(error).__name__}: {str(error)[:400]}",
            do="look whether the task's data are on this machine or a hub can be reached",
        ) from error
    return list(_rows(name, found))


def _rows(name: str, found: Any) -> Iterator[ResultRow]:
    for task, scores in found["results"].items():
        count = found["n-samples"].get(task, {}).get("effective", 0)
        for key, value in scores.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith(_STDERR) or not isinstance(value, int | float):
                continue
            error = scores.get(f"{metric}{_STDERR},{kind}")
            spread = _TWO_SIDED * error if isinstance(error, int | float) else None
            label = metric if kind == "none" else f"{metric}, {kind}"
            low, high = (None, None) if spread is None else (value - spread, value + spread)
            yield ResultRow(name, task, label, float(value), low, high, n=count)


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")
