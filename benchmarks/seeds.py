"""Signals against words once more, over several trainings: is what a run's report says of them more than one draw's luck?

    python benchmarks/seeds.py runs/tickets --seeds 4
    python benchmarks/seeds.py runs/tickets --seeds 4 --work DIR     # again: what is done is not done again

Takes a finished run and trains its student again with each seed, which decides the order of the lessons: once with the
teacher's signals, once on its words alone, with the same steps. Each is asked the questions of the run's first task with a
file. Over all trainings a question counts by the share of them that get it right, so that the test's items are questions,
which are independent, and not answers to the same question, which are not: the mean difference with its bootstrap interval,
and the p-value of a sign-flip test. `KL` is nats a token on the run's held-out lessons.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.evaluation import EvaluationTask, ModelSpec, held_out_lessons, load_task
from stillroom.evaluation.answering import answer_tasks
from stillroom.evaluation.likelihood import likelihood
from stillroom.models.local import LocalModel
from stillroom.models.references import resolve_model
from stillroom.stages.context import StageContext
from stillroom.stages.distil import DistilStage
from stillroom.stats import paired_bootstrap_difference, sign_flip
from stillroom.training.fitting import fit, steps_of
from stillroom.training.objective import Objective


def trained(stage: DistilStage, kind: str, seed: int, folder: Path) -> None:
    """Train one student into `folder`."""
    recipe = stage.recipe
    signals = kind == "signals"
    rows = stage.rows(stage.lessons("train"), signals=signals and stage.from_book)
    student = stage.beginner()
    fit(
        student,
        rows,
        objective=stage.objective if signals else Objective(hard=1.0, soft=0.0),
        settings=recipe.distil,
        steps=steps_of(recipe.distil, len(rows.lengths)),
        seed=seed,
        checkpoints=folder.with_name(f"{folder.name}.checkpoints"),
        metrics=folder.with_name(f"{folder.name}.jsonl"),
        label=folder.name,
        progress=stage.context.progress,
        teacher=stage.live_teacher() if signals else None,
    )
    stage.save(student, folder)
    shutil.rmtree(folder.with_name(f"{folder.name}.checkpoints"), ignore_errors=True)


def measured(run: Run, folder: Path, task: EvaluationTask, teacher: LocalModel) -> dict[str, Any]:
    """Which questions the student gets right, and how far it is from its teacher."""
    settings = run.recipe.evaluate
    model = LocalModel(str(folder), batch_size=settings.batch_size)
    spec = ModelSpec(folder.name, "local", str(folder))
    found = answer_tasks(model, spec, [task], settings.max_new_tokens, None, lambda count, note: None)
    lessons = held_out_lessons(run.need("filter") / "lessons.jsonl", "held-out lessons").lessons or []
    sums = likelihood(model, teacher, lessons, run.recipe.distil.max_length, lambda: None)
    model.close()
    return {
        "right": [verdict.correct for verdict in found.verdicts[task.name]],
        "kl": sum(sums.kl or []) / sum(sums.tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--work", type=Path, help="where students and figures are kept; default RUN/seeds")
    given = parser.parse_args()
    run = Run.open(given.run)
    work = given.work or given.run / "seeds"
    work.mkdir(parents=True, exist_ok=True)
    stage = DistilStage(StageContext(run, "distil", Progress()))
    first = next(task for task in run.recipe.evaluate.tasks if task.file)
    task = load_task(run.locate(first.file or ""), first.score, first.title, system=run.recipe.teach.system)
    teacher = LocalModel(str(resolve_model(run.recipe.teacher.model, run.base)))
    found: dict[str, list[dict[str, Any]]] = {"signals": [], "words": []}
    print(f"{'seed':>4} {'signals':>9} {'words':>9} {'better':>7} {'worse':>6} {'KL':>9} {'words KL':>9}")
    for seed in range(given.seeds):
        for kind, results in found.items():
            folder = work / f"{kind}-{seed}"
            figures = folder.with_suffix(".json")
            if not figures.is_file():
                trained(stage, kind, seed, folder)
                figures.write_text(json.dumps(measured(run, folder, task, teacher)))
            results.append(json.loads(figures.read_text()))
        ours, words = (np.array(results[-1]["right"]) for results in found.values())
        print(
            f"{seed:>4} {ours.mean():>9.2%} {words.mean():>9.2%} {(ours & ~words).sum():>7} {(words & ~ours).sum():>6}"
            f" {found['signals'][-1]['kl']:>9.5f} {found['words'][-1]['kl']:>9.5f}",
            flush=True,
        )
    shares = [np.mean([result["right"] for result in results], axis=0) for results in found.values()]
    value, low, high = paired_bootstrap_difference(shares[0], shares[1])
    print(f"\n{len(shares[0]):,} questions, {given.seeds} trainings each:", end=" ")
    print(f"{shares[0].mean():.2%} with signals, {shares[1].mean():.2%} on words;", end=" ")
    print(f"{value:+.2%} [{low:+.2%}, {high:+.2%}], p = {sign_flip(shares[0] - shares[1]):.4f}")


if __name__ == "__main__":
    main()
