"""Does a cascade keep its promise, and does a learned router send less on than a plain one?

    python benchmarks/cascade.py promise --data ../shared/data
    python benchmarks/cascade.py routers --run runs/tickets --items 4000 --work cascade-work

`promise`: of 1,000 random draws of calibration questions, in how many is the bound that was proved broken by all other
questions? On real predictions (MMLU-Pro, 12,032 questions x 29 models, letters only): the student is one small model, the
score is how many other small ones agree with it, the teacher is a strong one. And on made-up scores whose error is known,
so that the judgement has no noise of its own.

`routers`: fresh messages of the quickstart's job, from another seed than its own, are answered by a run's quantised student
and by its teacher, once; the answers are kept in --work. Over 20 draws of 1,000 messages to fit on, the others judge: which
share does each router send on until both models together are within half a point, one or two points of the teacher? A raw
threshold on the mean log-probability of all tokens, on the whole answer's and on the least likely token's; on the mean
entropy of the student's tokens, from its own logits; how the 20 nearest messages among those to fit on fared; chance; and
the learned router, also with that entropy. The same for the tokens after the reasoning alone. Then whole cascades: how often
are they promised and broken, what do they send on, and how far below the teacher are both together?
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.checks import strip_reasoning
from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Reply, content_key
from stillroom.contracts.runfolder import Run
from stillroom.evaluation.job import ModelSpec, Settings
from stillroom.evaluation.replies import ask_model
from stillroom.evaluation.scoring import judge
from stillroom.evaluation.tasks import Item, has_form
from stillroom.lessons.prompts.questions import user_text
from stillroom.lessons.prompts.tickets import tickets
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.rendering import Renderer
from stillroom.routing import Attempt, Cascade, Curve, Policy, Space, escalation_curve, halves, hashed_ngrams
from stillroom.routing.cascade import provable_threshold
from stillroom.routing.features import describe
from stillroom.routing.scorer import fit_scorer
from stillroom.stages.context import StageContext
from stillroom.stages.specs import gguf_spec, identity, teacher_spec

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


@dataclass(frozen=True)
class Answered:
    """The messages, and what student and teacher made of them."""

    attempts: list[Attempt]
    bare: list[Attempt]
    """With the tokens after the reasoning only."""
    entropy: Floats
    """[messages] mean over the answer's tokens, nats."""
    student: Floats
    """[messages] whether right."""
    teacher: Floats
    lessons: list[str]


def answered(run: Run, items: int, work: Path) -> Answered:
    """Fresh tickets, asked once."""
    context = StageContext(run, "cascade")
    lessons = [user_text(line["messages"]) for line in read_lines(run.need("filter") / "lessons.jsonl")]
    known = set(lessons)
    fresh = (ticket for ticket in tickets(2 * items, seed=777) if ticket.message not in known)
    questions = [
        Item([{"role": "user", "content": ticket.message}], ticket.reference)
        for ticket in islice(fresh, items)
    ]
    settings = Settings(max_new_tokens=96, batch_size=64)
    replies = {}
    specs = {"student": gguf_spec(context, run.recipe.handed_over or "F16"), "teacher": teacher_spec(context)}
    for who, spec in specs.items():
        path = work / f"{who}-{content_key(identity(spec))[:12]}.jsonl"
        replies[who] = ask_model(spec, questions, settings, path)
    right = {
        who: np.array(
            [judge(item, reply, "json").correct for item, reply in zip(questions, told, strict=True)], float
        )
        for who, told in replies.items()
    }
    own = replies["student"]
    attempts = [
        Attempt(
            item.messages[0]["content"],
            reply.logprobs,
            valid=has_form(strip_reasoning(reply.text), "json"),
            complete=reply.finish == "stop",
        )
        for item, reply in zip(questions, own, strict=True)
    ]
    bare = [
        replace(attempt, logprobs=(reply.logprobs or [])[reply.reasoning_tokens :])
        for attempt, reply in zip(attempts, own, strict=True)
    ]
    entropy = entropies(specs["student"], questions, own, work / "entropy.npy")
    return Answered(attempts, bare, entropy, right["student"], right["teacher"], lessons)


def entropies(spec: ModelSpec, questions: list[Item], replies: list[Reply], path: Path) -> Floats:
    """Of each answer, the mean over its tokens of the entropy of the student's whole distribution there."""
    if path.is_file():
        return np.load(path)
    renderer = Renderer.load(Path(spec.tokenizer or ""))
    found = []
    with LlamaCpp(spec.path) as model:
        for item, reply in zip(questions, replies, strict=True):
            prompt, told = renderer.prompt_ids(item.messages), reply.token_ids or []
            logits = model.logits([*prompt, *told])[len(prompt) - 1 : -1, : renderer.vocab_size].astype(float)
            logits -= logits.max(axis=1, keepdims=True)
            chances = np.exp(logits)
            mass = chances.sum(axis=1)
            found.append(float((np.log(mass) - (chances * logits).sum(axis=1) / mass).mean()))
    entropy = np.array(found)
    np.save(path, entropy)
    return entropy


LOSSES = (0.005, 0.01, 0.02)
FITTED = 1000


def routers(args: argparse.Namespace) -> dict[str, Any]:
    """How much each way sends on, printed and returned."""
    told = answered(Run.open(args.run), args.items, args.work)
    worse = (told.teacher > told.student).astype(float)
    print(
        f"{len(worse):,} messages: student right {told.student.mean():.1%}, teacher {told.teacher.mean():.1%}, the "
        f"student's answer worse in {worse.mean():.1%}"
    )
    space = Space.of(told.lessons)
    near = hashed_ngrams([attempt.question for attempt in told.attempts])
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    every = {"all tokens": describe(told.attempts, space), "answer's tokens": describe(told.bare, space)}
    ways: dict[str, Way] = {"chance": lambda learn, judge: np.random.default_rng(0).random(len(judge))}
    for tokens, described in every.items():
        for feature in ("mean token", "whole answer", "least likely token"):
            ways[f"raw {feature}, {tokens}"] = plain(-described[feature])
        ways[f"learned, {tokens}"] = learned(described, 1 - worse)
    ways["raw entropy, all tokens"] = plain(-told.entropy)
    known = every["all tokens"] | {"mean entropy": np.log(told.entropy + 1e-4)}
    ways["learned, with the entropy"] = learned(known, 1 - worse)
    ways["nearest messages"] = lambda learn, judge: (
        -worse[learn][np.argsort(-near[judge] @ near[learn].T, axis=1)[:, :20]].mean(axis=1)
    )
    found: dict[str, Any] = {}
    for name, way in ways.items():
        curves = []
        for draw in range(args.draws):
            order = np.random.default_rng(draw).permutation(len(worse))
            learn, judge = order[:FITTED], order[FITTED:]
            curves.append(escalation_curve(way(learn, judge), told.student[judge], told.teacher[judge]))
        sent = {str(loss): [share_within(curve, loss) for curve in curves] for loss in LOSSES}
        apgr = [curve.apgr or 0.0 for curve in curves]
        found[name] = {"apgr": apgr, **sent}
        shares = ", ".join(f"{np.mean(values):6.1%}" for values in sent.values())
        print(f"  {name:36} APGR {np.mean(apgr):.3f}; sent on for -0.5, -1, -2 points: {shares}")
    best = min((n for n in found if n.startswith("raw mean")), key=lambda n: np.mean(found[n]["0.01"]))
    for loss in LOSSES:
        ours, raw = (np.array(found[name][str(loss)]) for name in ("learned, all tokens", best))
        saved = 1 - ours.mean() / raw.mean()
        print(
            f"against {best}, {100 * loss:g} points lost: {saved:.0%} fewer sent on, "
            f"fewer in {np.mean(ours < raw):.0%} of the draws"
        )
        found[f"fewer at {loss}"] = saved
    return found | {"cascades": cascades(told, worse, args.draws)}


def cascades(told: Answered, worse: Floats, draws: int) -> dict[str, Any]:
    """The whole cascade, guard and all, fitted and proved on draws of the messages and judged on the others."""
    found: dict[str, Any] = {}
    for max_error in (0.05, 0.03, 0.025, 0.02):
        for questions in (500, 1000, 2000):
            lines = []
            for draw in range(draws):
                order = np.random.default_rng(draw).permutation(len(worse))
                chosen, rest = order[:questions], order[questions:]
                cascade = Cascade.fit(
                    [told.attempts[place] for place in chosen],
                    worse[chosen] > 0,
                    policy=Policy(max_error=max_error),
                    lessons=told.lessons,
                    seed=draw,
                )
                if cascade.threshold is None:
                    continue
                kept = cascade.scores([told.attempts[place] for place in rest]) >= cascade.threshold
                both = np.where(kept, told.student[rest], told.teacher[rest]).mean()
                lines.append((1 - kept.mean(), worse[rest][kept].mean(), told.teacher[rest].mean() - both))
            sent, error, lost = np.array(lines).T if lines else np.zeros((3, 1))
            broken = float((error > max_error).sum() / draws)
            print(
                f"  at most {max_error:.1%} worse, {questions:5,} questions: promised in {len(lines) / draws:4.0%} of "
                f"{draws}, broken in {broken:.1%}, sent on {sent.mean():.1%}, {100 * lost.mean():.2f} points below the "
                "teacher"
            )
            found[f"{max_error}, {questions}"] = {
                "promised": len(lines) / draws,
                "broken": broken,
                "sent on": sent.tolist(),
                "lost": lost.tolist(),
            }
    return found


Way = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]
"""From the messages to fit on and those to be judged to a score of the latter."""


def plain(score: Floats) -> Way:
    """A score that nothing is learned for."""
    return lambda learn, judge: score[judge]


def learned(described: dict[str, Floats], good: Floats) -> Way:
    """What the cascade does."""

    def way(learn: NDArray[np.int64], judge: NDArray[np.int64]) -> Floats:
        scorer, _ = fit_scorer({name: column[learn] for name, column in described.items()}, good[learn])
        return scorer.scores({name: column[judge] for name, column in described.items()})

    return way


def share_within(curve: Curve, loss: float) -> float:
    """The least share sent on from which on both together are that near to the teacher, or better."""
    return float(curve.shares[int(np.argmax(curve.quality >= curve.strong - loss - 1e-12))])


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
    two = verbs.add_parser("routers")
    two.add_argument("--run", type=Path, required=True, help="a finished run of the quickstart's job")
    two.add_argument("--items", type=int, default=4000)
    two.add_argument("--draws", type=int, default=20)
    two.add_argument("--work", type=Path, required=True, help="where the answers are kept")
    two.set_defaults(work_of=routers)
    args = parser.parse_args()
    found = args.work_of(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
