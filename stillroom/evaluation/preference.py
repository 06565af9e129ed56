"""Answers that are neither right nor wrong: a judge holds each model's beside the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

from stillroom.contracts.records import Message, ResultRow
from stillroom.evaluation.results import ModelResult, Outcome, Written
from stillroom.evaluation.tasks import EvaluationTask
from stillroom.stats import mcnemar_exact, paired_bootstrap_difference, wilson

Pairing: TypeAlias = tuple[list[Message], str, str]
"""A question, a model's answer and the teacher's."""
Compare: TypeAlias = Callable[[Sequence[Pairing]], Sequence[int | None]]
"""Of each 1 where the model's answer is better, -1 where the teacher's is, 0 for neither, None for no verdict."""
_OUTCOMES: dict[int | None, Outcome] = {1: "win", 0: "tie", -1: "loss", None: "unreadable"}


def judge_written(
    results: Sequence[ModelResult],
    tasks: Sequence[EvaluationTask],
    teacher: str,
    judges: Mapping[str, Compare],
) -> list[ModelResult]:
    """The results with an outcome of every answer to a task that a judge looks at; the teacher's own have none.

    All models' answers to a task are asked about in one go.

    Args:
        results: of these tasks.
        tasks: with their questions.
        teacher: the name of the model that the others are held beside.
        judges: who compares, by the task's name.
    """
    known = {result.name: dict(result.written) for result in results}
    for task in tasks:
        theirs = known.get(teacher, {}).get(task.name)
        if theirs is None or task.name not in judges:
            continue
        others = [given for name, given in known.items() if name != teacher and task.name in given]
        pairings = [
            (item.messages, own.text, wanted.text)
            for given in others
            for item, own, wanted in zip(task.written, given[task.name], theirs, strict=True)
        ]
        said = iter(judges[task.name](pairings))
        for given in others:
            column = given[task.name]
            given[task.name] = [
                replace(one, outcome=_OUTCOMES[verdict])
                for one, verdict in zip(column, islice(said, len(column)), strict=True)
            ]
    return [replace(result, written=known[result.name]) for result in results]


def preference_rows(
    model: str, task: str, written: Sequence[Written], versus: str | None, seed: int = 0
) -> Iterator[ResultRow]:
    """How often a judge prefers a model's answers to the teacher's; no rows where nobody was asked.

    `wins`, `ties`, `losses`: shares of the verdicts that could be read, with Wilson's intervals; `unreadable`: the share
    of all that could not; `preferred`: wins minus losses, with the paired bootstrap's interval and the exact sign test.
    """
    outcomes = [one.outcome for one in written if one.outcome is not None]
    read = [outcome for outcome in outcomes if outcome != "unreadable"]
    counted: dict[str, tuple[Outcome, int]] = {
        "wins": ("win", len(read)),
        "ties": ("tie", len(read)),
        "losses": ("loss", len(read)),
        "unreadable": ("unreadable", len(outcomes)),
    }
    for metric, (outcome, n) in counted.items():
        if n:
            yield ResultRow(model, task, metric, *wilson(outcomes.count(outcome), n), n=n, versus=versus)
    if read:
        # As if each were right unless the other one is better.
        change = paired_bootstrap_difference([o != "loss" for o in read], [o != "win" for o in read], seed)
        p = mcnemar_exact(read.count("win"), read.count("loss"))
        yield ResultRow(model, task, "preferred", *change, n=len(read), versus=versus, p=p)
