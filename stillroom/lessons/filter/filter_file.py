"""`stillroom filter`: answers of any file, or of a pipe, to lessons, without a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from stillroom.contracts.conversations import ANSWER_FIELDS, QUESTION_FIELDS, ROLES
from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.files import read_lines, whole_lines
from stillroom.contracts.loading import build_recipe, parse_yaml
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Answer, Finish, Message, Prompt, content_key, to_line
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.facts import reviewed_ids
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Helpers
from stillroom.lessons.teach.answers import lesson_messages

PIPE = "-"
_GIVEN_FIELDS = ("completion", "response", "output", "solution", "answer")
"""Where the answer to be judged stands in a line without messages, the surest first."""
_RIGHT_FIELDS = ("reference", "ground_truth", "right_answer", "expected", "label", "gold")
"""Where the right answer stands."""
_TEST_FIELDS = ("test", "tests", "test_list")
_FINISHES: dict[str, Finish] = {
    "length": "length",
    "content_filter": "refused",
    "refused": "refused",
    "failed": "failed",
}
Row = tuple[Prompt, Answer, dict[str, Any]]
"""A question, one answer to it, and what else its line says: tools, check, document."""


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
        source: JSONL file, or `-` for standard input.
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
    name = "standard input" if source == PIPE else source
    lines = _piped() if source == PIPE else read_lines(Path(source))
    for number, line in enumerate(lines, 1):
        yield read_row(line, f"{name}, line {number}", Path(source).name if source != PIPE else "", reasoning)


def _piped() -> Iterator[dict[str, Any]]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"standard input, line {number} is not JSON", got=str(error), expected="one object a line"
            ) from None
        if not isinstance(line, dict):
            raise DataError(f"standard input, line {number} is not a JSON object", expected="{...}")
        yield line


def read_row(line: dict[str, Any], where: str, source: str = "", reasoning: bool = True) -> Row:
    """A line as question, answer and what else is known.

    The answer is the assistant's turn at the end of `messages`, else the first field of completion, response, output,
    solution and answer that is there, to the question in prompt, question or the like. The right answer is in reference,
    ground_truth and the like, or in answer where that is not the answer itself; with tests (HumanEval's, MBPP's fields),
    these.

    Raises:
        DataError: there is no question or no answer.
    """
    messages, given = _conversation(line, where)
    finish: Finish = _FINISHES.get(str(line.get("finish", line.get("finish_reason"))), "stop")
    split = "tune" if line.get("split") == "tune" else "train"
    prompt = Prompt(messages[:-1], str(line.get("source") or source), split, _right(line, given))  # type: ignore[arg-type]
    answer = Answer(
        key=content_key(messages),
        prompt=prompt.id,
        sample=0,
        messages=lesson_messages(messages, reasoning=reasoning),
        finish=finish,
        completion_tokens=int(line.get("completion_tokens") or 0),
        error=line.get("error"),
    )
    tools = line.get("tools", line.get("function"))
    more = {
        "tools": tools if isinstance(tools, list) and tools else None,
        "check": line.get("check") if isinstance(line.get("check"), str) else None,
        "document": line.get("document", line.get("context")),
    }
    return prompt, answer, more


def _conversation(line: dict[str, Any], where: str) -> tuple[list[Message], str | None]:
    """The conversation that ends with the answer, and the field that the answer came from."""
    messages = line.get("messages")
    if isinstance(messages, list) and all(
        isinstance(item, dict) and item.get("role") in ROLES for item in messages
    ):
        answered = len(messages) > 1 and messages[-1]["role"] == "assistant"
        if answered:
            return messages, None
    question = next((line[field] for field in QUESTION_FIELDS if isinstance(line.get(field), str)), None)
    given = next((field for field in _GIVEN_FIELDS if isinstance(line.get(field), str)), None)
    asked = messages if messages else [{"role": "user", "content": question}] if question else None
    if asked is None or given is None:
        raise DataError(
            f"{where} has no {'question' if asked is None else 'answer'}",
            got=f"fields {', '.join(line) or 'none'}",
            expected="messages that end with the assistant's turn, or a question (prompt, question, ...) and an answer "
            f"({', '.join(_GIVEN_FIELDS)})",
        )
    return [*asked, {"role": "assistant", "content": line[given]}], given


def _right(line: dict[str, Any], given: str | None) -> str | None:
    test = next((field for field in _TEST_FIELDS if line.get(field)), None)
    if test is not None:
        tests = line[test] if isinstance(line[test], str) else "\n".join(map(str, line[test]))
        whole = {"test": tests, "entry_point": line.get("entry_point")}
        if line.get("entry_point"):
            whole["prompt"] = line.get("prompt")
        return json.dumps(whole)
    # `answer` beside messages or another answer is the right one; `output` and the like never are.
    fields = (*_RIGHT_FIELDS, *(field for field in ANSWER_FIELDS if field == "answer" and field != given))
    value = next((line[field] for field in fields if line.get(field) is not None), None)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
