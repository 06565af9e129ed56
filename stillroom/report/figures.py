"""The figures of two runs side by side: likelihoods over the same texts, probes, and what each weighs and took to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stillroom.report.lost import probe_figures
from stillroom.report.rows import data_size, duration, model_name, nats, number, speed
from stillroom.report.sides import Figure, Side, figure

_OVER_LESSONS = (("loss", "loss on {}, nats a token"), ("kl", "KL to the teacher on {}, nats a token"))
_OVER_TEXTS = (
    ("perplexity", "perplexity of {}, by the token"),
    ("byte_perplexity", "perplexity of {}, by the byte"),
)


def likelihoods(a: Side, b: Side, apart: list[str]) -> list[Figure]:
    """Loss and KL over held-out lessons, perplexities of texts, wherever both runs predicted the same ones.

    Args:
        a, b: the runs.
        apart: what cannot be compared is added, with its reason.
    """
    found: list[Figure] = []
    for task in a.results.tasks:
        if not (a.results.having(task, "loss") and b.results.having(task, "loss")):
            continue
        texts = bool(a.results.having(task, "perplexity") and b.results.having(task, "perplexity"))
        same, what = (_texts, "texts") if texts else (_lessons, "lessons")
        if (predicted := same(a, task)) is None or predicted != same(b, task):
            apart.append(
                f"Likelihood on {task}: each run predicts its own {what}, and these are not the same."
            )
            continue
        for model in a.results.models:
            for metric, label in _OVER_TEXTS if texts else _OVER_LESSONS:
                values = a.results.value(model, task, metric), b.results.value(model, task, metric)
                if None not in values:
                    found.append(figure(f"{model_name(model)}: {label.format(task)}", *values, nats))
    return found


def _lessons(side: Side, task: str) -> Any:
    """What tells the lessons that were held out of this run from others; None where that is not known."""
    return side.manifests["evaluate"].inputs.get("filter") if "evaluate" in side.manifests else None


def _texts(side: Side, task: str) -> Any:
    """What tells this task's texts, as they were read, from others; None where that is not known."""
    recipe = side.run.recipe
    asked = next((one for one in recipe.evaluate.tasks if one.title == task), None)
    if asked is None or "evaluate" not in side.manifests:
        return None
    content = side.manifests["evaluate"].settings.get("items", {}).get(asked.file)
    return content and (content, asked.limit, recipe.distil.max_length)


def probes(a: Side, b: Side, apart: list[str]) -> list[Figure]:
    """What the probes found of the models that are handed over, a line a figure that either run has.

    Args:
        a, b: the runs.
        apart: a probe that only one of them has is added.
    """
    found = [
        {one.label: one for one in probe_figures(side.results, side.results.shipped or "")} for side in (a, b)
    ]
    for side, other in ((a, b), (b, a)):
        missing = [name for name in side.results.probes if name not in other.results.probes]
        if missing:
            apart.append(f"Probes that only {side.label} has: {', '.join(missing)}.")
    lines = []
    for label, one in found[0].items():
        if label in found[1]:
            theirs = found[1][label]
            lines.append(Figure(label, one.text, theirs.text, (one.row.value, theirs.row.value)))
    return lines


def costs(a: Side, b: Side) -> Iterator[Figure]:
    """What each run's model weighs and what it took to make; a line that neither fills is left out."""
    for label, task, metric, show in _COSTS:
        one, other = (
            side.results.value(model, task, metric) if (model := side.results.shipped) else None
            for side in (a, b)
        )
        if one or other:
            yield figure(label, one, other, show)
    for label, stage, keys, show in _COUNTS:
        one, other = (_count(side, stage, keys) for side in (a, b))
        if one or other:
            yield figure(label, one, other, show)
    one, other = (sum(found.seconds for found in side.manifests.values()) or None for side in (a, b))
    if one or other:
        yield figure("time of all stages", one, other, duration)


_COSTS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("size of the file", "size", "file_bytes", data_size),
    ("parameters", "size", "parameters", number),
    ("peak memory", "size", "peak_memory_bytes", data_size),
    ("tokens a second", "speed", "tokens_per_second", speed),
    ("questions a second", "speed", "questions_per_second", speed),
)
_COUNTS: tuple[tuple[str, str, tuple[str, ...], Callable[[float], str]], ...] = (
    ("answers of the teacher", "teach", ("answers",), number),
    ("lessons", "filter", ("lessons",), number),
    ("US dollars for the teacher’s answers", "teach", ("dollars",), lambda value: f"{value:,.2f}"),
    ("US dollars for the judge", "filter", ("judge", "dollars"), lambda value: f"{value:,.2f}"),
    ("steps of training", "distil", ("models", "student", "steps"), number),
)


def _count(side: Side, stage: str, keys: tuple[str, ...]) -> float | None:
    found: Any = side.manifests[stage].counts if stage in side.manifests else None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None
