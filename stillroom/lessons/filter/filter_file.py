"""`stillroom filter`: answers of any file, or of a pipe, to lessons, without a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.files import read_lines, whole_lines
from stillroom.contracts.loading import build_recipe, parse_yaml
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import to_line
from stillroom.lessons.filter.answered_rows import Row, read_row
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.facts import reviewed_ids
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Helpers
from stillroom.lessons.prompts.readers import is_known_kind, read_rows

PIPE = "-"


def settings_recipe(sets: Iterable[str], source: str) -> Recipe:
    """A recipe that holds nothing but the filter's settings (`key=value`, the value in YAML), checked as in any recipe.

    Raises:
        RecipeError: a setting is unknown or out of range.
    """
    settings: dict[str, Any] = {}
    for override in sets:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(
                f"--set {override} is not understood", expected="--set key=value, such as keep=2"
            )
        settings[key.strip().removeprefix("filter.")] = parse_yaml(value, f"--set {override}")
    name = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in Path(source).stem).strip(
        "-._"
    )
    return build_recipe(
        {
            "name": name or "lessons",
            "teacher": {"model": "unknown"},
            "student": {"model": "unknown"},
            "prompts": [{"file": source}],
            "filter": settings,
        },
        "--set",
    )


def filter_file(
    source: str,
    out: str,
    recipe: Recipe,
    *,
    rejected: Path | None = None,
    preferences: Path | None = None,
    review: Path | None = None,
    reasoning: bool = True,
) -> dict[str, Any]:
    """Divide a file's answers into lessons and rejects; returns the counts.

    Answers to one question that stand in consecutive lines are samples of it: only among those are pairs, agreement and the
    first n looked for. Memory does not grow with the file but for a few numbers a lesson.

    Args:
        source: a file of answers (JSONL, CSV, Parquet, ...), or `-` for standard input.
        out: where lessons go, or `-` for standard output.
        recipe: its `filter` section; paths in it are relative to the working folder.
        rejected: where the rejects go, with their reasons.
        preferences: where pairs of right and wrong answers go.
        review: where lessons go whose facts are in doubt, with `facts: flag` and `facts: review`.
        reasoning: keep the reasoning in the lessons.

    Raises:
        DataError: the file is not usable; the message names the line.
        RecipeError: a setting needs a whole recipe.
    """
    rule = recipe.filter
    for name, value in (
        ("judge", rule.judge), ("contrast", rule.contrast), ("student_sample", rule.student_sample)
    ):  # fmt: skip
        if value:
            raise RecipeError(
                f"filter.{name} asks a model, which this command does not",
                do="write a recipe and use stillroom run, or leave it out",
            )
    if rule.facts == "review" and review is None:
        raise RecipeError("facts: review needs a file to write to", do="add --review FILE, or use facts=drop")
    held_out = HeldOut()
    for name in recipe.filter.decontaminate:
        held_out.add(Path(name).expanduser(), Path(name).name)
    filtering = Filtering(rule, Path(), held_out, Helpers(reviewed=reviewed_ids(rule, Path())))
    with ExitStack() as stack:
        keep = _print if out == PIPE else stack.enter_context(whole_lines(Path(out)))
        reject = stack.enter_context(whole_lines(rejected)) if rejected else None
        prefer = stack.enter_context(whole_lines(preferences)) if preferences else None
        look = stack.enter_context(whole_lines(review)) if review else None
        for sifted in filtering.sift(_groups(_rows(source, reasoning))):
            _write(keep, map(to_line, sifted.lessons))
            _write(reject, map(to_line, sifted.rejected))
            _write(prefer, sifted.pairs)
            _write(look, sifted.review)
    return filtering.summary()


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    """What was kept and what was not, for a reader."""
    yield f"{summary['answers']:,} answers: {summary['lessons']:,} lessons, {summary['rejected']:,} rejected"
    for reason, count in sorted(summary["reasons"].items(), key=lambda item: -item[1]):
        yield f"  {count:>8,}  {reason}"
    if summary.get("pairs"):
        yield f"  {summary['pairs']:,} pairs of a right and a wrong answer"
    if facts := summary.get("facts"):
        yield f"  facts: {facts.get('examined', 0):,} answers compared, {facts.get('in doubt', 0):,} in doubt"
    for name, found in summary["contamination"].items():
        yield f"  {name}: {found['leaks']:,} answers touched its {found['questions']:,} questions ({found['whole']:,} whole)"
    for warning in summary["warnings"]:
        yield f"  note: {warning}"


def _write(write: Callable[[dict[str, Any]], None] | None, lines: Iterable[dict[str, Any]]) -> None:
    if write is not None:
        for line in lines:
            write(line)


def _print(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def _groups(rows: Iterable[Row]) -> Iterator[Group]:
    for _, samples in groupby(rows, key=lambda row: row[0].id):
        found = list(samples)
        yield Group(found[0][0], [answer for _, answer, _ in found], **found[0][2])


def _rows(source: str, reasoning: bool) -> Iterator[Row]:
    path = Path(source)
    title = "" if source == PIPE else path.name
    if source == PIPE:
        lines = _piped()
    elif is_known_kind(path):
        lines = read_rows(source, path)
    else:  # JSON lines, whatever the name
        lines = ((f"{source}, line {number}", line) for number, line in enumerate(read_lines(path), 1))
    for where, line in lines:
        yield read_row(line, where, title, reasoning)


def _piped() -> Iterator[tuple[str, dict[str, Any]]]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        if not raw.strip():
            continue
        where = f"standard input, line {number}"
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON", got=str(error), expected="one object a line") from None
        if not isinstance(line, dict):
            raise DataError(
                f"{where} is not a JSON object",
                got=raw[:80].decode(errors="replace").strip(),
                expected="{...}",
            )
        yield where, line
