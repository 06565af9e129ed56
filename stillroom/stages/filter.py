"""Answers become lessons, or rejects with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from stillroom.checks.exact import equal_text
from stillroom.checks.json_fields import compare, parse_object
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import whole_lines, write_atomically
from stillroom.contracts.records import Answer, Lesson, Prompt, Rejected, content_key, to_line
from stillroom.lessons.answered import AnswersFile
from stillroom.lessons.answers import lesson_messages
from stillroom.lessons.asking import read_run_prompts, requests_of
from stillroom.lessons.quality import objection
from stillroom.models.origins import teacher_identity
from stillroom.report.cards import dataset_card
from stillroom.stages.context import StageContext

FEWEST = 500
"""Under this many lessons a student memorises examples instead of learning the task."""


def run(context: StageContext) -> dict[str, Any]:
    """Write filter/lessons.jsonl, rejected.jsonl and dataset-card.md.

    Raises:
        DataError: no lesson is left.
    """
    folder, counts = context.folder, Counter[str]()
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    rejects = folder / "rejected.jsonl"
    with whole_lines(folder / "lessons.jsonl") as keep, whole_lines(rejects) as reject:
        for prompt, answer in _answers(context):
            verdict = _judge(context, prompt, answer, seen)
            counts["answers"] += 1
            if isinstance(verdict, Rejected):
                reasons[verdict.reason] += 1
                reject(to_line(verdict))
            else:
                counts[verdict.split] += 1
                counts["checked"] += bool(verdict.checks)
                keep(to_line(verdict))
    if counts["train"] == 0:
        why = (
            ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            or "there were no answers"
        )
        raise DataError(
            "no lesson is left",
            got=why,
            do=f"look at {rejects}; loosen filter, or mend the prompts or the teacher",
        )
    if counts["train"] < FEWEST:
        context.progress.say(
            f"only {counts['train']} lessons: under {FEWEST} a student memorises examples rather than learns the task"
        )
    summary = {
        "lessons": counts["train"] + counts["tune"],
        "rejected": reasons.total(),
        "reasons": dict(reasons),
        **counts,
    }
    write_atomically(folder / "dataset-card.md", dataset_card(summary, context.recipe))
    return summary


def _answers(context: StageContext) -> Iterator[tuple[Prompt, Answer]]:
    """The answers to the recipe's requests with their prompts, in the order of the prompts."""
    recipe = context.recipe
    identity = teacher_identity(recipe.teacher, context.run.base)
    with AnswersFile(context.run.need("teach") / "answers.jsonl") as file:
        for prompt in read_run_prompts(context.run.need("prompts")):
            for request in requests_of(recipe, identity, [prompt]):
                if answer := file.read(request.key):
                    yield prompt, answer


def _judge(context: StageContext, prompt: Prompt, answer: Answer, seen: set[str]) -> Lesson | Rejected:
    recipe = context.recipe
    messages = lesson_messages(answer.messages, reasoning=recipe.teach.reasoning)
    keep_truncated = recipe.filter.truncated == "keep"
    if found := objection(answer, keep_truncated=keep_truncated):
        return Rejected(prompt.id, messages, *found)
    key = content_key(messages)
    if key in seen:
        return Rejected(prompt.id, messages, "the same answer again")
    checks, problem = _verify(context, messages[-1]["content"], prompt.reference)
    if problem:
        return Rejected(prompt.id, messages, *problem)
    seen.add(key)
    return Lesson(
        id=key,
        messages=messages,
        split=prompt.split,
        source=prompt.source,
        complete=answer.finish == "stop",
        checks=checks,
    )


def _verify(
    context: StageContext, text: str, reference: str | None
) -> tuple[dict[str, bool], tuple[str, str] | None]:
    """The checks that an answer passed, and why it is rejected if it failed one."""
    rule = context.recipe.filter
    if rule.verify == "json":
        value = parse_object(text)
        if value is None:
            return {}, ("not the JSON object asked for", text[-120:])
        missing = [key for key in rule.required if key not in value]
        if missing:
            return {}, ("JSON keys are missing", ", ".join(missing))
        return {"json": True}, None
    if rule.verify == "reference" and reference is not None:
        if not _agrees(text, reference):
            return {}, ("differs from the right answer", reference[:200])
        return {"reference": True}, None
    return {}, None


def _agrees(text: str, reference: str) -> bool:
    """JSON answers agree field by field, others to the letter."""
    if parse_object(reference) is not None:
        return compare(text, reference).exact
    return equal_text(text, reference)
