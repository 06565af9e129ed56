"""Does a cascade keep its promise, and does a learned router send less on than a plain one?

    python benchmarks/cascade.py promise --data ../shared/data
    python benchmarks/cascade.py routers --run runs/tickets --items 4000 --work /tmp/cascade

`promise`: of 1,000 random draws of calibration questions, in how many is the bound that was proved broken by all other
questions? On real predictions (MMLU-Pro, 12,032 questions x 29 models, letters only): the student is one small model, the
score is how many other small ones agree with it, the teacher is a strong one. And on made-up scores whose error is known,
so that the judgement has no noise of its own.

`routers`: fresh messages of the quickstart's job are answered by a run's quantised student and by its teacher, once; the
answers are kept in --work. Over 20 draws of 1,000 messages to fit on, the others judge: how many escalations does each
router need for the same quality? Random, the mean log-probability, the whole answer's log-probability, the greatest and mean
token entropy where known, nearest neighbours among the questions, and the learned one.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.routing.cascade import halves, provable_threshold

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
TEACHERS = ("gemini-1.5-pro-002", "Meta-Llama-3_1-70B-Instruct")
STUDENT = "Phi-3-mini-4k-instruct"
CHEAP = (
    "Meta-Llama-3_1-8B-Instruct",
    "Meta-Llama-3_1-8B",
    "Meta-Llama-3-8B",
    "mathstral-7B",
    "gemma-7b",
    "Mistral-7B-v0.1",
    "Mistral-7B-v0.2-hf",
    "Mistral-7B-Instruct-v0.2",
    "Qwen1.5-7B-Chat",
    "Yi-6b-Chat",
)


@dataclass(frozen=True)
class Kept:
    """What came of the promises of many draws."""

    draws: int
    promised: int
    broken: int
    """By the questions outside the draw."""
    broken_in_all: int
    """By all questions, those of the draw included."""
    kept: float
    """Mean share of questions that the student keeps where something is promised."""

    def line(self) -> str:
        """For the table in docs/benchmarks.md."""
        share, noise = self.broken / self.draws, 2 * (0.05 * 0.95 / self.draws) ** 0.5
        return (
            f"promised in {self.promised / self.draws:6.1%}, kept {self.kept:6.1%}, broken in {share:5.2%} "
            f"({self.broken_in_all / self.draws:.2%} of all questions); allowed 5 % + {noise:.1%} of noise"
        )


def draw_promises(
    scores: Floats, worse: Floats, *, max_error: float, questions: int, draws: int, seed: int = 0
) -> Kept:
    """Fit and prove on `questions` of a pool, again and again, and judge on the rest of it."""
    rng, promised, broken, broken_in_all, kept = np.random.default_rng(seed), 0, 0, 0, 0.0
    for draw in range(draws):
        chosen = rng.choice(len(scores), questions, replace=False)
        learn, prove = (chosen[half] for half in halves(questions, draw))
        threshold, _ = provable_threshold(
            scores[learn], worse[learn], scores[prove], worse[prove], max_error, CONFIDENCE
        )
        if threshold is None:
            continue
        rest = scores >= threshold
        broken_in_all += bool(worse[rest].mean() > max_error)
        kept += float(rest.mean())
        rest[chosen] = False
        promised += 1
        broken += bool(rest.any() and worse[rest].mean() > max_error)
    return Kept(draws, promised, broken, broken_in_all, kept / max(1, promised))


def mmlu_pro(data: Path, teacher: str) -> tuple[Floats, Floats]:
    """Of each question how many of ten small models agree with the student, a hair of its place breaking no tie; and whether
    the student is wrong where the teacher is right."""
    path = data / "mmlu-pro-predictions" / "mmlupro_pred_matrix.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    told = [line["pred"] for line in lines]
    scores = [sum(pred.get(model) == pred.get(STUDENT) for model in CHEAP) for pred in told]
    worse = [
        pred.get(teacher) == line["answer"] != pred.get(STUDENT)
        for line, pred in zip(lines, told, strict=True)
    ]
    return np.array(scores, dtype=np.float64), np.array(worse, dtype=np.float64)


CURVES: dict[str, Callable[[Floats], Floats]] = {
    "falls evenly": lambda u: 0.4 * (1 - u),
    "falls late": lambda u: 0.3 * (1 - u**4),
    "a hair over the bound, everywhere": lambda u: np.full_like(u, 0.105),
    "over the bound from 0.8 down": lambda u: np.where(u > 0.8, 0.02, 0.3),
    "misleading at the top": lambda u: np.where(u > 0.9, 0.3, 0.05 + 0.1 * (1 - u)),
}
"""Chance of a worse answer at each score in 0..1; scores are evenly spread. The bound is 0.1."""


def simulate(
    curve: Callable[[Floats], Floats], *, max_error: float, questions: int, draws: int, seed: int = 0
) -> Kept:
    """The same with answers that are worse by a known chance; what is kept is judged by that chance itself."""
    rng, promised, broken, kept = np.random.default_rng(seed), 0, 0, 0.0
    grid = (np.arange(20_000) + 0.5) / 20_000
    chances = curve(grid)
    for draw in range(draws):
        u = rng.random(questions)
        worse = (rng.random(questions) < curve(u)).astype(np.float64)
        learn, prove = halves(questions, draw)
        threshold, _ = provable_threshold(
            u[learn], worse[learn], u[prove], worse[prove], max_error, CONFIDENCE
        )
        if threshold is None:
            continue
        promised += 1
        broken += bool(chances[grid >= threshold].mean() > max_error)
        kept += 1 - threshold
    return Kept(draws, promised, broken, broken, kept / max(1, promised))


def promise(args: argparse.Namespace) -> dict[str, Any]:
    """Both kinds of draws, printed and returned."""
    found: dict[str, Any] = {}
    for teacher in TEACHERS:
        scores, worse = mmlu_pro(args.data, teacher)
        print(f"{STUDENT} before {teacher}: {worse.mean():.1%} of its answers worse")
        for max_error in (0.2, 0.25, 0.3):
            for questions in (400, 1000):
                kept = draw_promises(
                    scores, worse, max_error=max_error, questions=questions, draws=args.draws
                )
                print(f"  at most {max_error:.0%} worse, {questions:5,} questions: {kept.line()}")
                found[f"{teacher}, {max_error}, {questions}"] = asdict(kept)
    for name, curve in CURVES.items():
        kept = simulate(curve, max_error=0.1, questions=1000, draws=args.draws)
        print(f"error {name}, at most 10% worse, 1,000 questions: {kept.line()}")
        found[name] = asdict(kept)
    return found


def main() -> None:
    """Parse, run, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("promise")
    one.add_argument("--data", type=Path, default=Path("../shared/data"))
    one.add_argument("--draws", type=int, default=1000)
    one.set_defaults(work_of=promise)
    args = parser.parse_args()
    found = args.work_of(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
