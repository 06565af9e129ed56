"""The cascade is fitted: on questions set apart, when is the student's answer as good as that of the model behind it?

Both models answer these questions once; the replies are kept in route/answers/, under names that change with the model. The
handed-over file's are kept with the log-probability of every token, which is what the cascade goes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.checks import strip_reasoning
from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.files import read_lines, write_json
from stillroom.contracts.recipe import PromptSource, Route, Score, Teacher
from stillroom.contracts.records import Reply, ResultRow, content_key, to_line
from stillroom.evaluation.job import ModelSpec, Settings
from stillroom.evaluation.replies import ask_model
from stillroom.evaluation.scoring import agrees, judge
from stillroom.evaluation.tasks import Item, has_form, item_line, question_item
from stillroom.lessons.prompts.questions import user_text
from stillroom.lessons.prompts.sources import read_questions
from stillroom.models.endpoint import base_url
from stillroom.models.teachers import Price, price_of
from stillroom.routing import Attempt, Cascade, Policy, curve_rows, escalation_curve, halves
from stillroom.stages.context import StageContext
from stillroom.stages.specs import gguf_spec, identity, teacher_spec

Verdicts = NDArray[np.bool_]


def run(context: StageContext) -> dict[str, Any]:
    """Write route/cascade.json and route/results.json.

    Raises:
        DataError: the questions are not usable, or too few.
        RecipeError: a limit of costs is set and the other model's price is not known.
        RunError: the student's file is missing.
        ModelError, TeacherError, ServiceFault: a model cannot be loaded or reached.
    """
    recipe = context.recipe
    spec = recipe.route
    assert spec is not None
    score = spec.score or recipe.written_score
    assert score is not None
    other = recipe.teacher if spec.escalate_to == "teacher" else spec.escalate_to
    price = _price(context, spec, other)  # before anybody is paid
    items = _questions(context, spec, score)
    handed_over = gguf_spec(context, recipe.handed_over or "F16")
    own = _replies(context, handed_over, items)
    theirs = _replies(context, teacher_spec(context, other), items)
    student, teacher = _verdicts(items, own, theirs, score, trusted=recipe.filter.trusted)
    attempts = [_attempt(item, reply, score, spec.decide_on) for item, reply in zip(items, own, strict=True)]
    cascade = Cascade.fit(
        attempts,
        teacher & ~student,
        policy=_policy(spec, price, theirs),
        lessons=_taught(context),
        seed=recipe.seed,
    )
    cascade.save(context.folder / "cascade.json")
    _, prove = halves(len(items), recipe.seed)
    scores = cascade.scores([attempts[place] for place in prove])
    curve = escalation_curve(scores, student[prove], teacher[prove])
    rows = [*curve_rows(curve, handed_over.name), *_promise_rows(cascade, handed_over.name)]
    write_json(context.folder / "results.json", [to_line(row) for row in rows])
    for sentence in cascade.promise.sentences:
        context.progress.say(f"  {sentence}")
    return {
        "questions": len(items),
        "with a right answer": sum(bool(item.reference) for item in items),
        "worse answers": int((teacher & ~student).sum()),
        "promised": cascade.promise.held,
        "escalated": round(cascade.promise.escalated, 4),
    }


def _questions(context: StageContext, spec: Route, score: Score) -> list[Item]:
    """Of the recipe's file, or those that the prompts stage has set apart."""
    recipe, run = context.recipe, context.run
    if spec.file is not None:
        path = run.locate(spec.file)
        lines: Iterator[dict[str, Any]] = (
            vars(question) for question in read_questions(PromptSource(file=spec.file), path)
        )
    else:
        path = run.need("prompts") / "calibration.jsonl"
        lines = read_lines(path)
    tools = recipe.teach.parameters.get("tools")
    items = [
        question_item(
            item_line(line), f"{path}, item {number}", score, system=recipe.teach.system, tools=tools
        )
        for number, line in enumerate(lines, 1)
        if spec.limit is None or number <= spec.limit
    ]
    if not items:
        raise DataError(
            "no question was set apart for the cascade",
            got=f"{path}, which is empty",
            do="raise splits.calibrate, or name some in route.file",
        )
    return items


def _replies(context: StageContext, spec: ModelSpec, items: list[Item]) -> list[Reply]:
    recipe = context.recipe
    settings = Settings(
        max_new_tokens=recipe.evaluate.max_new_tokens,
        batch_size=recipe.evaluate.batch_size,
        concurrency=recipe.teach.concurrency,
    )
    path = context.folder / "answers" / f"{spec.name}-{content_key(identity(spec))[:12]}.jsonl"
    return ask_model(spec, items, settings, path, context.progress)


def _verdicts(
    items: list[Item], own: list[Reply], theirs: list[Reply], score: Score, *, trusted: bool
) -> tuple[Verdicts, Verdicts]:
    """Whether the student's and the other model's answers are right, [items] each.

    Where no right answer is known, the other model's passes for it.
    """
    found = []
    for item, mine, other in zip(items, own, theirs, strict=True):
        if item.reference or score == "quotes":
            found.append([judge(item, reply, score, trusted=trusted).correct for reply in (mine, other)])
            continue
        found.append([agrees(item, mine, strip_reasoning(other.text), score, trusted=trusted), True])
    verdicts = np.array(found, dtype=np.bool_)
    return verdicts[:, 0], verdicts[:, 1]


def _attempt(item: Item, reply: Reply, score: Score, decide_on: str) -> Attempt:
    question = user_text(item.messages)
    if decide_on == "question":
        return Attempt(question)
    return Attempt(
        question,
        reply.logprobs,
        valid=has_form(strip_reasoning(reply.text), score),
        complete=reply.finish == "stop",
    )


def _price(context: StageContext, spec: Route, other: Teacher) -> Price | None:
    """What the other model costs, where a cap on money needs to know it."""
    if spec.max_cost is None:
        return None
    own = context.run.locate(other.prices) if other.prices else None
    price = price_of(other.model, base_url(other.api) if other.api else None, own)
    if price is None:
        raise RecipeError(
            "what the other model costs is not known, so no limit can be kept",
            got=f"route.max_cost: {spec.max_cost:g}",
            expected="a price for it",
            do="name a file with its prices in its `prices`, or set route.max_share instead",
        )
    return price


def _policy(spec: Route, price: Price | None, theirs: list[Reply]) -> Policy:
    """The recipe's wishes; an escalation costs what the other model's answers to these questions did on average."""
    dollars = None
    if price is not None:
        spent = [price.cost(reply.prompt_tokens, reply.completion_tokens) for reply in theirs]
        dollars = sum(spent) / len(spent)
    return Policy(spec.max_error, spec.confidence, spec.max_share, spec.max_cost, dollars)


def _taught(context: StageContext) -> list[str]:
    """The questions that the student learned from."""
    path: Path = context.run.need("filter") / "lessons.jsonl"
    return [user_text(line["messages"]) for line in read_lines(path) if line.get("split") == "train"]


def _promise_rows(cascade: Cascade, model: str) -> Iterator[ResultRow]:
    """What was found with the cascade's own threshold: `escalated`, and `kept_error` with its upper bound."""
    promise = cascade.promise
    yield ResultRow(model, "cascade", "escalated", promise.escalated, n=promise.asked, at=cascade.threshold)
    if promise.kept:
        error = promise.worse / promise.kept
        yield ResultRow(model, "cascade", "kept_error", error, 0.0, promise.bound, n=promise.kept)
