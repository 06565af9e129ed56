"""What was asked, and answers side by side for reading: the items on which models disagree come first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stillroom.evaluation.results import ModelResult, Written
from stillroom.evaluation.tasks import EvaluationTask

MOST = 200
"""Items of each task."""


def asked(tasks: Sequence[EvaluationTask]) -> Iterator[dict[str, Any]]:
    """Lines of evaluate/items.jsonl: each task's questions, in the order of the verdicts in evaluate/models/NAME.json.

    So the models of another run can be held against these item by item.
    """
    for task in tasks:
        for item in task.items or []:
            yield {"task": task.name, "messages": item.messages, "reference": item.reference}


def samples(tasks: Sequence[EvaluationTask], results: Sequence[ModelResult]) -> Iterator[dict[str, Any]]:
    """Lines of evaluate/samples.jsonl: task, messages, reference, and each model's text, verdict and confidence."""
    for task in tasks:
        if task.judged:
            continue
        columns = {r.name: r.verdicts[task.name] for r in results if task.name in r.verdicts}
        items = task.items or []
        agreed = [len({column[i].correct for column in columns.values()}) <= 1 for i in range(len(items))]
        # Sorting keeps the file's order within both groups.
        for i in sorted(range(len(items)), key=agreed.__getitem__)[:MOST]:
            yield {
                "task": task.name,
                "messages": items[i].messages,
                "reference": items[i].reference,
                "answers": {
                    name: {
                        "text": column[i].text,
                        "correct": column[i].correct,
                        "confidence": column[i].confidence,
                        **({"why": column[i].why} if column[i].why else {}),
                    }
                    for name, column in columns.items()
                },
            }


def judged_samples(
    tasks: Sequence[EvaluationTask], results: Sequence[ModelResult]
) -> Iterator[dict[str, Any]]:
    """Lines of evaluate/judged.jsonl: task, messages, and each model's text with what the judge says of it beside the
    teacher's; those that lost most often come first."""
    for task in tasks:
        columns = {r.name: r.written[task.name] for r in results if task.name in r.written}
        rows: list[dict[str, Written]] = [
            {name: column[i] for name, column in columns.items()}
            for i in range(len(task.written) if columns else 0)
        ]
        lost = [sum(one.outcome == "loss" for one in row.values()) for row in rows]
        for i in sorted(range(len(rows)), key=lost.__getitem__, reverse=True)[:MOST]:
            answers = {
                name: {"text": one.text, **({"outcome": one.outcome} if one.outcome else {})}
                for name, one in rows[i].items()
            }
            yield {"task": task.name, "messages": task.written[i].messages, "answers": answers}
