"""The page, the table and the files that `stillroom report A B` makes of two runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.contracts.files import write_atomically
from stillroom.contracts.runfolder import Run
from stillroom.report.beside import Comparison, Pair, compare_runs
from stillroom.report.gallery import BUDGET, Group, shown_item, weight
from stillroom.report.rendering import render
from stillroom.report.rows import chance, model_name, percent, points, times
from stillroom.report.scale import Scale
from stillroom.report.verdict import SURE, span_points

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 24
"""Questions of each group."""


def write_comparison(first: Run, second: Run, out: Path) -> Comparison:
    """Write the page at `out`, and the same as .json and .csv beside it.

    Raises:
        DataError: a file of an evaluation is not readable.
    """
    found = compare_runs(first, second)
    write_atomically(out, _page(found))
    write_atomically(out.with_suffix(".json"), json.dumps(_tree(found), ensure_ascii=False, indent=1) + "\n")
    write_atomically(out.with_suffix(".csv"), _csv(found))
    return found


def title(found: Comparison) -> str:
    """Which is better, in a few words."""
    better = [pair for pair in found.shipped if _clear(pair)]
    winners = {_winner(found, pair) for pair in better}
    if not found.shipped:
        return "Two runs, and no questions that both were asked"
    if not better:
        return f"{found.first.label} and {found.second.label}: too close to tell which is better"
    if len(winners) > 1:
        return f"{found.first.label} and {found.second.label}: each is better at something"
    tasks = "" if len(better) == len(found.shipped) else f" on {', '.join(pair.task for pair in better)}"
    return f"{winners.pop()} is better{tasks}"


def findings(found: Comparison) -> list[str]:
    """What the comparison shows, one sentence or two an item."""
    return [*(_quality(found, pair) for pair in found.shipped), *_sizes(found)]


def _clear(pair: Pair) -> bool:
    return (pair.difference.p or 0.0) < SURE and pair.difference.value != 0


def _winner(found: Comparison, pair: Pair) -> str:
    return (found.second if pair.difference.value > 0 else found.first).label


def _quality(found: Comparison, pair: Pair) -> str:
    one, other = found.first.label, found.second.label
    text = (
        f"On the {pair.first.n:,} questions of {pair.task} that both were asked, {one} gives {percent(pair.first.value)} "
        f"exactly right answers and {other} {percent(pair.second.value)}: "
    )
    if not pair.differing:
        return f"{text}every answer of one is right where the other’s is."
    row = pair.difference
    evidence = f"({span_points(row)}; {chance(row.p or 0.0)})"
    alone = (
        f"{pair.lost:,} that only {one} has right, {len(pair.differing) - pair.lost:,} that only {other} has."
    )
    if _clear(pair):
        size = points(abs(row.value)).lstrip("+")
        return f"{text}{_winner(found, pair)} is better by {size} {evidence}, more than chance would explain; {alone}"
    return f"{text}a difference of {points(row.value)} {evidence} that chance may explain; {alone}"


def _sizes(found: Comparison) -> Iterator[str]:
    for figure in found.figures:
        one, other = (value or 0.0 for value in figure.values)
        words = _LARGER.get(figure.label)
        if words is None or not one or not other or max(one, other) / min(one, other) < _WORTH_SAYING:
            continue
        more = found.first.label if one > other else found.second.label
        yield words.format(more, times(max(one, other) / min(one, other)), figure.first, figure.second)


_WORTH_SAYING = 1.05
_FASTER = (
    "When each was evaluated, {} was {} times as fast ({} against {} a second); that is about the models only if it was "
    "the same machine, equally busy."
)
_LARGER = {
    "size of the file": "The file of {} is {} times as large ({} against {}).",
    "tokens a second": _FASTER,
    "questions a second": _FASTER,
}


def tables(found: Comparison) -> Iterator[Table]:
    """Quality, figures and settings for the terminal."""
    one, other = found.first.label, found.second.label
    pairs = [*found.shipped, *found.others, *found.tries]
    if pairs:
        yield _table(
            ["model", "task", one, other, "difference", "p"],
            [[_models(p), _asked(p), percent(p.first.value), percent(p.second.value),
              points(p.difference.value), f"{p.difference.p:.3g}"] for p in pairs],
        )  # fmt: skip
    if figures := [*found.likelihoods, *found.probes, *found.figures]:
        yield _table(["", one, other], [[figure.label, figure.first, figure.second] for figure in figures])
    if found.settings:
        yield _table(["setting", one, other], [[s.label, s.first, s.second] for s in found.settings])


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _models(pair: Pair) -> str:
    names = [model_name(row.model) for row in (pair.first, pair.second)]
    return names[0] if names[0] == names[1] else " against ".join(names)


def _asked(pair: Pair) -> str:
    """The task, and how many tries at it count."""
    return pair.task if pair.first.metric == "exact" else f"{pair.task}, {pair.first.metric}"


def _page(found: Comparison) -> str:
    pairs = [*found.shipped, *found.others]
    return render(
        "versus.html",
        found=found,
        title=title(found),
        findings=findings(found),
        pairs=pairs,
        models=_models,
        asked=_asked,
        scale=Scale.over([row for pair in pairs for row in (pair.first, pair.second)]),
        tried=Scale.over([row for pair in found.tries for row in (pair.first, pair.second)]),
        groups=_groups(found),
        several=len(found.shipped) > 1,
    )


def _groups(found: Comparison) -> list[Group]:
    """The questions that only one of the two has right, as many as the page can hold."""
    names = {"first": found.first.label, "second": found.second.label}
    groups, allowance = [], BUDGET
    for right, name in names.items():
        lines = [line for p in found.shipped for line in p.differing if line["answers"][right]["correct"]]
        group = Group(f"Only {name} is right", len(lines))
        for line in lines[:_SHOWN]:
            item = shown_item(line, names)
            allowance -= weight(item)
            if allowance < 0:
                break
            group.items.append(item)
        groups.append(group)
    return [group for group in groups if group.total]


def _tree(found: Comparison) -> dict[str, Any]:
    def pair(one: Pair) -> dict[str, Any]:
        return {"task": one.task} | {
            name: asdict(getattr(one, name)) for name in ("first", "second", "difference")
        } | {"only first right": one.lost, "only second right": len(one.differing) - one.lost}  # fmt: skip

    def figures(some: list[Any]) -> list[dict[str, Any]]:
        return [{"what": one.label, "first": one.values[0], "second": one.values[1]} for one in some]

    return {
        "first": found.first.label,
        "second": found.second.label,
        "title": title(found),
        "findings": findings(found),
        "settings": [asdict(setting) for setting in found.settings],
        "handed over": [pair(one) for one in found.shipped],
        "models of one name": [pair(one) for one in found.others],
        "several tries": [pair(one) for one in found.tries],
        "likelihood": figures(found.likelihoods),
        "probes": figures(found.probes),
        "figures": figures(found.figures),
        "not compared": found.apart,
    }


def _csv(found: Comparison) -> str:
    text = io.StringIO()
    file = csv.writer(text, lineterminator="\n")
    file.writerow(
        ["what", "task", "first_model", "second_model", "n", "first", "first_low", "first_high", "second",
         "second_low", "second_high", "difference", "low", "high", "p"]
    )  # fmt: skip
    for pair in [*found.shipped, *found.others, *found.tries]:
        a, b, change = pair.first, pair.second, pair.difference
        file.writerow(
            [a.metric, pair.task, a.model, b.model, a.n, a.value, a.low, a.high, b.value, b.low, b.high,
             change.value, change.low, change.high, change.p]
        )  # fmt: skip
    for figure in [*found.likelihoods, *found.probes, *found.figures]:
        one, other = figure.values
        file.writerow([figure.label, *[""] * 4, one, "", "", other, *[""] * 6])
    return text.getvalue()
