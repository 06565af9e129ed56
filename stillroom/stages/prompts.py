"""Questions in: files are read, duplicates and evaluation items taken out, splits drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stillroom.contracts.conversations import conversation_of
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines, write_lines
from stillroom.contracts.records import Prompt, content_key, to_line
from stillroom.lessons.sources import question_key, read_prompts
from stillroom.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Write prompts/prompts.jsonl.

    Raises:
        DataError: a file is unusable, or no question is left.
    """
    recipe, counts = context.recipe, Counter[str]()
    held_out = _evaluation_questions(context)

    def kept() -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        with context.progress.meter("reading", None, "questions") as meter:
            for source in recipe.prompts:
                for prompt in read_prompts(
                    context.run.locate(source.file), Path(source.file).name, source.limit
                ):
                    meter.advance()
                    counts["read"] += 1
                    key = question_key(prompt.messages)
                    if key in held_out:
                        counts["in evaluation"] += 1
                    elif key in seen:
                        counts["duplicates"] += 1
                    else:
                        seen.add(key)
                        split = _split(key, recipe.splits.tune, recipe.seed)
                        counts[split] += 1
                        counts["with a right answer"] += prompt.reference is not None
                        yield to_line(Prompt(prompt.messages, prompt.source, split, prompt.reference))

    total = write_lines(context.folder / "prompts.jsonl", kept())
    if total == 0:
        raise DataError(
            "no question is left to ask",
            got=f"{counts['read']} read, all of them duplicates or evaluation items",
            do="give more questions",
        )
    if counts["train"] == 0:
        raise DataError("no question is left to train on", got=f"{total} in all", do="give more questions")
    return {"prompts": total, **counts}


def _split(key: str, tune: float, seed: int) -> Literal["train", "tune"]:
    """A question's split depends on its text and the seed only, so that adding questions moves none."""
    draw = int(content_key(key, seed)[:12], 16) / 16**12
    return "tune" if draw < tune else "train"


def _evaluation_questions(context: StageContext) -> set[str]:
    """Keys of all questions that must not be trained on."""
    recipe = context.recipe
    files = [task.file for task in recipe.evaluate.tasks if task.file] + recipe.filter.decontaminate
    keys = set()
    for name in files:
        path = context.run.locate(name)
        for number, line in enumerate(read_lines(path), 1):
            keys.add(question_key(conversation_of(line, f"{path}, line {number}")[0]))
    return keys
