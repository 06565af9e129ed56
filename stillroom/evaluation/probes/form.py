"""The form that a task's answers have, whether they are right or not."""

from __future__ import annotations

import ast
from collections.abc import Callable

from stillroom.checks import (
    chosen_letter,
    equal_text,
    final_number,
    parse_object,
    quotes,
    strip_reasoning,
)
from stillroom.evaluation.tasks import EvaluationTask


def form_of(task: EvaluationTask) -> Callable[[str], bool] | None:
    """What tells whether a text is an answer in the task's form; None where any text is one.

    A JSON object with the keys that all right answers share; a final number; a letter; a passage in quotation marks; Python
    that can be parsed; one of the right answers, where they are few and repeat, as classes do.
    """
    references = [item.reference for item in task.items or []]
    if task.score == "json":
        keys = set.intersection(*({*(parse_object(text) or {})} for text in references))
        return lambda text: (found := parse_object(text)) is not None and keys <= found.keys()
    if task.score == "number":
        return lambda text: final_number(text) is not None
    if task.score == "choice":
        return lambda text: chosen_letter(text) is not None
    if task.score == "quotes":
        return lambda text: bool(quotes(text))
    if task.score == "code":
        return _is_code
    classes = {*references}
    if task.score == "exact" and 2 * len(classes) <= len(references):
        return lambda text: any(equal_text(text, one) for one in classes)
    return None


def _is_code(text: str) -> bool:
    answer = strip_reasoning(text)
    if "```" in answer:
        answer = answer.split("```")[1].partition("\n")[2]
    try:
        return bool(ast.parse(answer).body)
    except (SyntaxError, ValueError, RecursionError):
        return False
