"""Ways to distil on one task with a checkable answer, at equal training FLOPs: what helps, and what does the teacher cost?

    python benchmarks/modes.py --work /tmp/modes                  # a teacher in 20 minutes, 18 students in 20 more
    python benchmarks/modes.py --work /tmp/modes --seeds 3        # two more seeds; what is there is not run again
    python benchmarks/modes.py --work /tmp/modes --only soft traces bare
    python benchmarks/modes.py --work /tmp/tiny --size tiny       # does it run? its figures mean nothing

Chains of small sums modulo 100 (benchmarks/arithmetic.py): students learn from chains of two to six steps and are asked
others of as many, and chains of seven and eight steps, which no lesson holds; their teacher was shown chains of up to
ten, and stopped before it knew them all. A right answer is the right number, whatever was thought before it. Every student
is one run of one recipe, one key away from `soft`, which is the default: signals of 36 bytes a token from a book. A run
stops once the student is trained; what it answers is asked here, greedily as a report does, and the first 200 questions of
each kind ten times at temperature 1.

Training takes 6 FLOPs a parameter and token, one pass forward 2, so that a student of shorter lessons, or one that shares
its budget with a medium student, a teacher that learns or an alignment, is given as many steps as make the sums equal.
What the teacher spent on answering, scoring and listening is not held equal but told, as is what the student spent on
writing of its own.

Seeds decide the teacher's draws, the order of lessons and fresh weights; the teacher itself is one. Over seeds a question
counts by the share of trainings that get it right: bootstrap intervals, sign-flip tests. ECE (15 bins of equal mass) is
that of the number's probability after the thought that the student had, and of thought and number together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from arithmetic import Shape, make_teacher, write_job
from costs import bill, lesson_tokens, training_flops, weights

from stillroom.contracts.files import read_json, write_json
from stillroom.contracts.records import Request, Sampling
from stillroom.contracts.runfolder import Run
from stillroom.evaluation import EvaluationTask, load_task
from stillroom.evaluation.scoring import answer_confidence, judge
from stillroom.stats import (
    bootstrap_mean,
    expected_calibration_error,
    paired_bootstrap_difference,
    pass_at_k,
    sign_flip,
    wilson,
)

TASKS = ("inside", "outside")
MOST_TOKENS = 128
"""Of an answer."""
TRIES, TRIED, SHOWN = 10, 200, (1, 5)
"""Each of the first TRIED questions is answered so often, for pass@k of these k."""
BASE = "soft"
PAIRS = (
    ("traces", "bare"),
    ("fresh", "fresh-traces"),
    ("live", "traces"),
    ("hidden", "live"),
    ("attention", "hidden"),
)
"""What else is held against each other."""
ALIKE = ("prompts", "teach", "filter")
"""Stages that runs of one seed share, as far as their settings are the same."""


@dataclass(frozen=True)
class Size:
    """The task, the teacher, and how long a student is trained in the run that sets the budget."""

    operands: int
    teacher: Shape
    medium: int
    student: int
    questions: int
    evaluation: int
    steps: int
    rows: int


SIZES = {
    "tiny": Size(9, Shape(32, 64, 3, 2, 20, 16, 2e-3), 2, 1, 40, 12, 6, 8),
    "small": Size(9, Shape(128, 256, 6, 4, 1400, 32, 1e-3), 4, 2, 2000, 500, 90, 32),
}


@dataclass(frozen=True)
class Variant:
    """One way to distil: what it is called in the table and what it changes of the recipe."""

    says: str
    changes: tuple[str, ...] = ()
    own_lessons: bool = False
    """Whether its lessons differ from those of the run that sets the budget."""


def variants(size: Size) -> dict[str, Variant]:
    """All of them, in the order of the table; BASE is among them.

    Settings are the defaults but for two that models this small and trainings this short call for: learning rates thirty
    times the default, and a past of a hundred steps instead of a thousand. Nothing was tuned for a single variant.
    """
    words, live = "distil.loss={hard: 1.0, soft: 0.0}", "distil.teacher=live"
    silent = "teach.signal.kind=none"
    given = "prompts=[{file: questions.jsonl, answers: given}]"
    fresh = f"student={{config: {{num_hidden_layers: {size.student}}}}}"
    return {
        "labels": Variant("right answers, no teacher", (words, silent, given), own_lessons=True),
        "bare": Variant("bare answers", (words, silent, "teach.reasoning=false"), own_lessons=True),
        "traces": Variant("reasoning traces", (words,)),
        BASE: Variant("soft labels from a book"),
        "both": Variant("soft labels and the words", ("distil.loss={hard: 0.5, soft: 0.5}",)),
        "curriculum": Variant("surest lessons first", ("distil.curriculum={by: doubt}",)),
        "live": Variant("live teacher, forward KL", (live,)),
        "reverse": Variant("live, reverse KL", (live, "distil.loss.divergence=reverse_kl")),
        "js": Variant("live, Jensen-Shannon", (live, "distil.loss.divergence=jensen_shannon")),
        "hidden": Variant("live + hidden states", (live, "distil.loss.hidden=1.0")),
        "attention": Variant(
            "live + hidden states + attention", (live, "distil.loss.hidden=1.0", "distil.loss.attention=1.0")
        ),
        "rounds": Variant("on-policy rounds after soft labels", ("distil.rounds={questions: 512}",)),
        "self": Variant(
            "its own past, with the words",
            ("distil.teacher=self", "distil.past.decay=0.99", "distil.loss={hard: 1.0, soft: 0.5}"),
        ),
        "online": Variant(
            "teacher learns too, with the words",
            ("distil.teacher=online", "distil.loss={hard: 1.0, soft: 1.0}"),
        ),
        # Two runs and not the recipe's `chain`, whose links are handed over as files too: a medium student of this task, its
        # logits far apart, can be more than the 0.01 nats off in float16 that are let pass.
        "chain": Variant("by way of a medium student"),
        "fresh": Variant("soft labels, fresh start", (fresh,)),
        "fresh-traces": Variant("reasoning traces, fresh start", (fresh, words)),
        "dpo": Variant("DPO on top of soft labels", ("align={pairs: teacher, learning_rate: 1.5e-4}",)),
    }


# Running.


@dataclass(frozen=True)
class School:
    """One comparison: its folder and size."""

    work: Path
    size: Size

    def folder(self, name: str, seed: int) -> Path:
        """The run of a variant."""
        return self.work / "runs" / f"{name}-{seed}"

    def figures(self, name: str, seed: int) -> Path:
        """What came of it."""
        return self.work / "figures" / f"{name}-{seed}.json"

    def open(self) -> None:
        """Questions, teacher and recipe, unless they are there."""
        for part in ("runs", "figures"):
            (self.work / part).mkdir(parents=True, exist_ok=True)
        stamp, mark = repr(self.size), self.work / "size.txt"
        if mark.is_file() and mark.read_text() != stamp:
            sys.exit(f"{self.work} holds a comparison of another size; give another --work")
        mark.write_text(stamp)
        size = self.size
        write_job(self.work, size.questions, size.evaluation, size.operands)
        (self.work / "recipe.yaml").write_text(json.dumps(self.recipe(), indent=1))
        made = self.work / "teacher.json"
        if not made.is_file():
            write_json(made, make_teacher(self.work / "teacher", size.teacher, size.operands))
        if not self.figures("teacher", 0).is_file():
            write_json(self.figures("teacher", 0), self.measured(self.work / "teacher"))

    def recipe(self) -> dict[str, Any]:
        """That of the run which sets the budget; JSON is YAML."""
        size = self.size
        return {
            "name": BASE,
            "teacher": {"model": "teacher"},
            "student": {"prune": {"layers": size.student, "keep": "first"}},
            "prompts": [{"file": "questions.jsonl"}],
            "teach": {"max_new_tokens": MOST_TOKENS, "batch_size": 256},
            "filter": {"decontaminate": [f"{task}.jsonl" for task in TASKS]},
            "distil": {
                "learning_rate": 3e-3,
                "steps": size.steps,
                "batch_size": size.rows,
                "micro_batch_size": size.rows,
            },
            "quantise": [],
        }

    def train(self, name: str, seed: int) -> None:
        """The run of one variant, as long as its budget lasts."""
        folder, variant = self.folder(name, seed), variants(self.size)[name]
        changes = [f"name={folder.name}", f"seed={seed}", *variant.changes]
        if name != BASE:
            self._borrow(name, seed)
            if variant.own_lessons:
                self._run(changes, "filter")
        changes += self._lasting(name, seed, changes)
        self._run(changes, "align" if name == "dpo" else "distil")

    def _run(self, changes: Sequence[str], until: str) -> None:
        options = [part for change in changes for part in ("--set", change)]
        command = [sys.executable, "-m", "stillroom", "run", str(self.work / "recipe.yaml")]
        command += ["--runs", str(self.work / "runs"), "--until", until, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")

    def _borrow(self, name: str, seed: int) -> None:
        """What the teacher has answered already is not asked again: a stage whose settings are the same holds."""
        target = self.folder("medium" if name == "chain" else name, seed)
        for stage in ALIKE:
            if not (target / stage).is_dir():
                shutil.copytree(self.folder(BASE, seed) / stage, target / stage)

    def _lasting(self, name: str, seed: int, changes: Sequence[str]) -> list[str]:
        """How many steps a variant's budget lasts, as overrides; the base has what the recipe says."""
        size, teacher = self.size, self.work / "teacher"
        if name == BASE:
            return []
        own = variants(size)[name].own_lessons
        length = mean(lesson_tokens(self.folder(name if own else BASE, seed), "train"))
        student = weights(teacher, size.student)
        budget = training_flops(student, self._budget_tokens(seed))

        def steps(flops: float, parameters: int) -> int:
            return max(1, round(flops / training_flops(parameters, size.rows * length)))

        if name == "chain":  # half for each
            medium = steps(budget / 2, weights(teacher, size.medium))
            self._run(
                [
                    *changes,
                    f"name=medium-{seed}",
                    f"student.prune.layers={size.medium}",
                    f"distil.steps={medium}",
                ],
                "distil",
            )
            return [
                f"teacher.model=runs/medium-{seed}/distil/student",
                f"distil.steps={steps(budget / 2, student)}",
            ]
        if name == "online":
            return [f"distil.steps={steps(budget, student + weights(teacher))}"]
        if name == "dpo":  # the last quarter is for pairs; how many there are, the student's answers tell
            few = [f"distil.steps={steps(budget * 3 / 4, student)}", "align.epochs=0.001"]
            self._run([*changes, *few], "align")
            pairs = Run.open(self.folder(name, seed)).manifest("align").counts["pairs"]  # type: ignore[union-attr]
            epochs = budget / 4 / training_flops(student, 2 * pairs * length)
            return [few[0], f"align.epochs={epochs}"]
        return [f"distil.steps={steps(budget, student)}"]

    def _budget_tokens(self, seed: int) -> float:
        size = self.size
        return size.steps * size.rows * mean(lesson_tokens(self.folder(BASE, seed), "train"))

    # Measuring.

    def measure(self, name: str, seed: int) -> None:
        """Ask the student of a finished run, and write down what it cost."""
        runs = [Run.open(self.folder(one, seed)) for one in (name, *(["medium"] if name == "chain" else []))]
        write_json(self.figures(name, seed), {**self.measured(runs[0].student), "bill": vars(bill(*runs))})

    def measured(self, model: Path) -> dict[str, Any]:
        """By task: right or wrong and confidence of greedy answers, and how many of ten tries are right."""
        from stillroom.models.local import LocalModel

        tasks = [load_task(self.work / f"{task}.jsonl", "exact", task) for task in TASKS]
        student = LocalModel(model, batch_size=256)
        try:
            return {"parameters": student.parameters, **{task.name: _asked(student, task) for task in tasks}}
        finally:
            student.close()


def _asked(model: Any, task: EvaluationTask) -> dict[str, list[Any]]:
    items = task.items or []
    found: dict[str, list[Any]] = {name: [None] * len(items) for name in ("right", "confidence", "whole")}
    found["tries"] = [0] * len(items[:TRIED])
    for asked, samples, temperature in ((items, 1, 0.0), (items[:TRIED], TRIES, 1.0)):
        requests = [
            Request(str(place), item.messages, sample)
            for sample in range(samples)
            for place, item in enumerate(asked)
        ]
        for request, reply in model.answer(
            requests, Sampling(temperature=temperature, max_new_tokens=MOST_TOKENS)
        ):
            place = int(request.key)
            verdict = judge(items[place], reply, "exact")
            if temperature:
                found["tries"][place] += verdict.correct
            else:
                found["right"][place], found["confidence"][place] = verdict.correct, verdict.confidence or 0.0
                found["whole"][place] = answer_confidence(reply.logprobs)
    return found


def go(work: Path, size: str, name: str, seed: int) -> str:
    """Train and measure one variant unless that is done; returns what to say of it."""
    school = School(work, SIZES[size])
    if not school.figures(name, seed).is_file():
        school.train(name, seed)
        school.measure(name, seed)
    figures = read_json(school.figures(name, seed))
    shares = ", ".join(f"{task} {np.mean(figures[task]['right']):.1%}" for task in TASKS)
    return f"{name}, seed {seed}: {shares}, {figures['bill']['training'] / 1e12:.2f} TFLOPs"


# The table.


def summary(name: str, found: list[dict[str, Any]], other: list[dict[str, Any]] | None) -> dict[str, Any]:
    """What is told of a variant: its seeds' figures, held against the same seeds of another."""
    row: dict[str, Any] = {"variant": name, "seeds": len(found), "parameters": found[0]["parameters"]}
    for task in TASKS:
        each = [one[task] for one in found]
        shares = np.mean([one["right"] for one in each], axis=0)
        one_seed = len(found) == 1
        said: dict[str, Any] = {
            "exact": wilson(int(shares.sum()), len(shares)) if one_seed else bootstrap_mean(shares),
            "of each seed": [float(np.mean(one["right"])) for one in each],
        }
        right = np.concatenate([one["right"] for one in each])
        for kind in ("confidence", "whole"):
            said[f"ece {kind}"] = expected_calibration_error(
                np.concatenate([one[kind] for one in each]), right
            )
        for k in SHOWN:
            said[f"pass@{k}"] = mean(pass_at_k(TRIES, right, k) for one in each for right in one["tries"])
        if other is not None:
            theirs = np.mean([one[task]["right"] for one in other], axis=0)
            said["difference"] = (*paired_bootstrap_difference(shares, theirs), sign_flip(shares - theirs))
        row[task] = said
    if "bill" in found[0]:
        row["bill"] = {key: mean(one["bill"][key] for one in found) for key in found[0]["bill"]}
    return row


def table(rows: Sequence[dict[str, Any]], titles: dict[str, str]) -> Iterable[str]:
    """Lines of markdown: right answers and differences, then calibration, tries and costs."""
    yield "| | trained | 2 to 6 steps | against soft labels | 7 and 8 steps | against soft labels |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        cells = [text for task in TASKS for text in (_share(row[task]["exact"]), _difference(row[task]))]
        yield f"| {titles[row['variant']]} | {row['seeds']} | {' | '.join(cells)} |"
    yield ""
    yield (
        "| | ECE, short | of the whole | ECE, long | of the whole | pass@1, 5, short | pass@1, 5, long "
        "| training | teacher | own |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [f"{row[task][f'ece {kind}']:.3f}" for task in TASKS for kind in ("confidence", "whole")]
        cells += [", ".join(f"{row[task][f'pass@{k}']:.1%}" for k in SHOWN) for task in TASKS]
        costs = row.get("bill", {})
        cells += [
            f"{costs[key] / 1e12:.2f}" if key in costs else "" for key in ("training", "teacher", "own")
        ]
        yield f"| {titles[row['variant']]} | {' | '.join(cells)} |"


def _share(interval: Sequence[float]) -> str:
    value, low, high = (100 * part for part in interval)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _difference(said: dict[str, Any]) -> str:
    if "difference" not in said:
        return ""
    value, low, high, p = said["difference"]
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {p:.2g}"


def tell(school: School, seeds: int, names: Iterable[str]) -> None:
    """Print the table of what is there, and write results.json."""
    titles = {"teacher": "teacher"} | {name: one.says for name, one in variants(school.size).items()}
    rows = [summary("teacher", [read_json(school.figures("teacher", 0))], None)]

    def figures(name: str, wanted: Iterable[int]) -> list[dict[str, Any]]:
        return [read_json(school.figures(name, seed)) for seed in wanted]

    for name in names:
        there = [seed for seed in range(seeds) if school.figures(name, seed).is_file()]
        if there:
            other = figures(BASE, there) if name != BASE else None
            rows.append(summary(name, figures(name, there), other))
    print("\n".join(table(rows, titles)))
    for first, second in PAIRS:
        there = [
            seed
            for seed in range(seeds)
            if all(school.figures(one, seed).is_file() for one in (first, second))
        ]
        if there:
            row = summary(first, figures(first, there), figures(second, there))
            said = "; ".join(f"{task} {_difference(row[task])}" for task in TASKS)
            print(f"\n{titles[first]} against {titles[second]}: {said}")
    write_json(school.work / "results.json", rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(variants(SIZES["small"]))
    parser.add_argument("--work", type=Path, required=True, help="where teacher, runs and figures are kept")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--jobs", type=int, default=1, help="students trained at once; set OMP_NUM_THREADS=1 with more"
    )
    given = parser.parse_args()
    school = School(given.work.resolve(), SIZES[given.size])
    school.open()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        # The others need what the teacher answered in the run that sets the budget.
        for wave in ([BASE], [name for name in given.only if name != BASE]):
            due = [
                pool.submit(go, school.work, given.size, name, seed)
                for seed in range(given.seeds)
                for name in wave
            ]
            for done in as_completed(due):
                print(done.result(), flush=True)
    tell(school, given.seeds, [name for name in names if name in {BASE, *given.only}])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
