"""Multiple choice without writing: which of the options does a model find likeliest?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from stillroom.contracts.child import Advance
from stillroom.evaluation.results import Figures
from stillroom.evaluation.scoring import Verdict, judge_ranking
from stillroom.evaluation.tasks import EvaluationTask, Item
from stillroom.models.rendering import Branches, Renderer


class Ranker(Protocol):
    """A model that tells how likely given answers are."""

    renderer: Renderer
    context: int | None

    def rank(self, questions: Iterable[Branches]) -> Iterator[list[float]]:
        """For each question, in order, the log-probability of each answer."""
        ...


def rank_tasks(
    model: Ranker, tasks: list[EvaluationTask], advance: Advance
) -> tuple[dict[str, list[Verdict]], Figures]:
    """Verdicts by task, of those whose options are ranked, and what it took.

    Raises:
        ModelError: the chat template refuses a question.
    """
    verdicts: dict[str, list[Verdict]] = {}
    started = time.perf_counter()
    for task in tasks:
        if task.ranked:
            found = verdicts.setdefault(task.name, [])
            questions = (_branches(model, item) for item in task.ranked)
            for item, logprobs in zip(task.ranked, model.rank(questions), strict=True):
                found.append(judge_ranking(item, logprobs))
                advance(1, "options ranked")
    ranked = sum(map(len, verdicts.values()))
    return verdicts, Figures(questions=ranked, seconds=time.perf_counter() - started if ranked else 0.0)


def _branches(model: Ranker, item: Item) -> Branches:
    """A question that does not fit the model's context is cut at its beginning: its options stand at its end."""
    found = model.renderer.branches(item.messages, item.options or [], item.tools)
    if model.context is None:
        return found
    room = model.context - max(map(len, found.tails))
    return found if len(found.ids) <= room else Branches(found.ids[-max(1, room) :], found.tails, found.given)
