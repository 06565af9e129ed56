"""The student trains, and the baselines beside it, each with the same number of steps.

Each model has a mark of all that it depends on; one whose mark still holds is not trained again, so adding a baseline
does not train the student anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.ranks import once
from stillroom.stages.context import StageContext
from stillroom.stages.distil.rounds import in_rounds
from stillroom.stages.distil.stage import Apprentice, DistilStage
from stillroom.training.batches import RowSource
from stillroom.training.fitting import steps_of
from stillroom.training.objective import Objective

_VALIDATION_ROWS = 200


def run(context: StageContext) -> dict[str, Any]:
    """Write distil/student, distil/metrics.jsonl and distil/baselines/NAME.

    Raises:
        DataError: there is nothing to train on.
        BookError: the book does not fit the lessons.
    """
    stage, recipe, folder = DistilStage(context), context.recipe, context.folder
    train = stage.rows(stage.lessons("train"), signals=stage.from_book)
    if len(train.lengths) == 0:
        raise DataError(
            "no lesson can be trained on",
            got=f"{stage.too_long.total()} too long, {stage.without_signal} without signals",
            do="raise distil.max_length, or look at filter/lessons.jsonl",
        )
    stage.steps = steps_of(recipe.distil, len(train.lengths))
    tune = stage.rows(stage.lessons("tune"), signals=stage.from_book)
    stage.validation = [tune[index] for index in range(min(len(tune.lengths), _VALIDATION_ROWS))]
    counts: dict[str, Any] = {"lessons": len(train.lengths), "tokens": int(train.lengths.sum())}
    student = Apprentice(
        "student", folder / "student", folder / "metrics.jsonl", stage.objective, lambda: train
    )
    if not recipe.distil.rounds:  # those of an earlier recipe
        once(lambda: shutil.rmtree(folder / "rounds", ignore_errors=True))
    way = partial(in_rounds, stage) if recipe.distil.rounds else None
    counts |= {"models": {"student": stage.train(student, way)}}
    for name in recipe.baselines:
        counts["models"][name] = _baseline(stage, name)
    if too_long := stage.too_long.total():
        counts["too long"] = too_long
        context.progress.say(f"{too_long} lessons are longer than distil.max_length and were left out")
    if stage.without_signal:
        counts["without signal"] = stage.without_signal
        context.progress.say(f"{stage.without_signal} lessons have no usable signal and were left out")
    return counts


def _baseline(stage: DistilStage, name: str) -> dict[str, Any]:
    folder = stage.context.folder / "baselines" / name
    if name == "before":
        stage.untaught(folder)
        return {"steps": 0}
    if name == "labels-only":
        labels = list(stage.labels())
        if not labels:
            raise DataError(
                "the baseline labels-only has nothing to learn from",
                got="no question of the recipe's prompts has a right answer",
                expected="an assistant turn, or a field such as reference, in a file of prompts",
                do="add labelled questions to prompts, or take labels-only out of baselines",
            )
        rows: Callable[[], RowSource] = lambda: stage.rows(iter(labels), signals=False)  # noqa: E731
    else:
        rows = lambda: stage.rows(stage.lessons("train"), signals=False)  # noqa: E731
    hard = Objective(hard=1.0, soft=0.0)
    return stage.train(Apprentice(name, folder, folder / "metrics.jsonl", hard, rows))
