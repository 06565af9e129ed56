"""What `stillroom init` makes: a job that runs as it is, to be changed into one's own."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from stillroom.checks.json_fields import parse_object
from stillroom.contracts.errors import DataError, UserError
from stillroom.contracts.files import storage, write_lines
from stillroom.contracts.loading import load_recipe
from stillroom.contracts.recipe import PromptSource
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.sources import read_questions
from stillroom.lessons.prompts.tickets import write_job

FEWEST, ENOUGH = 3, 10
"""Examples under which nothing can be invented, and under which an evaluation says little."""

_KNOWN = ("reference", "tools", "tool_choice", "response_format")


def start_job(folder: Path, *, messages: int, labelled: int, evaluation: int, seed: int) -> None:
    """Make a folder with recipe.yaml and data/, whole or not at all.

    Raises:
        UserError: the folder exists and is not empty.
        RecipeError: its name cannot be a run's name.
    """

    def fill(scratch: Path) -> None:
        write_job(scratch / "data", unlabelled=messages, labelled=labelled, evaluation=evaluation, seed=seed)

    _make(folder, _template("recipe.yaml").replace("NAME", folder.name), fill)


def start_from_examples(
    folder: Path, *, task: Path, examples: Path, teacher: str, api: str | None, student: str, count: int
) -> list[str]:
    """Make a job out of a description and a few examples, whole or not at all; returns what the user should know.

    The recipe lets the teacher invent questions from the examples, which are kept for the evaluation. Where all of them
    have right answers they are a task, scored field by field where the answers are JSON objects; else they are only kept
    out of training, and the student is measured by its likelihood.

    Args:
        folder: the job's folder.
        task: a text that describes the job; it steers the inventions and is the system prompt.
        examples: questions, in any form that a recipe's prompts may have.
        teacher: the model that is asked.
        api: the base URL of its API, or None where it is local.
        student: the model that learns.
        count: how many questions to invent.

    Raises:
        UserError: the folder exists and is not empty.
        DataError: task or examples are not usable.
        RecipeError: its name cannot be a run's name.
    """
    description = _description(task)
    found = list(read_questions(PromptSource(file=str(examples)), examples))
    if len(found) < FEWEST:
        raise DataError(
            f"{examples} has too few examples",
            got=len(found),
            expected=f"at least {FEWEST}; ten to a hundred serve well",
        )
    answered = all(example.reference is not None for example in found)
    recipe = _filled(
        _template("examples-recipe.yaml"),
        NAME=folder.name,
        TEACHER={"model": teacher} | ({"api": api} if api else {}),
        STUDENT=student,
        COUNT=count,
        SYSTEM=description.strip(),
        SIGNAL="none" if api else "head+draws",
        LOSS={"hard": 1.0, "soft": 0.0} if api else {"hard": 0.0, "soft": 1.0},
        **_measured(found, answered),
    )

    def fill(scratch: Path) -> None:
        (scratch / "data").mkdir()
        (scratch / "data/task.md").write_text(description, encoding="utf-8")
        write_lines(scratch / "data/examples.jsonl", map(_line, found))

    _make(folder, recipe, fill)
    notes = []
    if len(found) < ENOUGH:
        notes.append(f"{len(found)} examples show the job but measure little: ten to a hundred serve well")
    if not answered:
        notes.append("examples without right answers: the student is measured by its likelihood only")
    return notes


def _description(task: Path) -> str:
    try:
        text = task.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{task} does not exist", do="write down the job in a few sentences there") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{task} is not text", got=str(error), expected="a text file in UTF-8") from None
    if not text.strip():
        raise DataError(f"{task} is empty", expected="the job in a few sentences")
    return text


def _measured(examples: list[Question], answered: bool) -> dict[str, Any]:
    """How lessons are checked and the student is measured, from the examples' right answers."""
    if not answered:
        held_out = {"decontaminate": ["data/examples.jsonl"]}
        return {"FILTER": held_out, "TASKS": [{"score": "likelihood"}]}
    objects = [parse_object(example.reference or "") for example in examples]
    known = [value for value in objects if value is not None]
    is_json = len(known) == len(objects)
    required = [key for key in known[0] if all(key in value for value in known)] if is_json else []
    check: dict[str, Any] = {"verify": "json", "required": required} if is_json else {"verify": "none"}
    if any(example.tools for example in examples):
        check = {"verify": "tools"}
    tasks = [
        {"file": "data/examples.jsonl", "score": "json" if is_json else "exact"},
        {"score": "likelihood"},
    ]
    return {"FILTER": check, "TASKS": tasks}


def _line(example: Question) -> dict[str, Any]:
    """An example as it is asked, and its right answer."""
    known = {name: getattr(example, name) for name in _KNOWN}
    return {"messages": example.messages, **{name: value for name, value in known.items() if value}}


def _filled(template: str, **values: Any) -> str:
    """The template with each word in capitals replaced by its value as JSON, which is YAML too."""
    words = "|".join(values)
    return re.sub(rf"\b({words})\b", lambda found: json.dumps(values[found[1]], ensure_ascii=False), template)


def _template(name: str) -> str:
    return (files("stillroom") / "embedded" / name).read_text(encoding="utf-8")


def _make(folder: Path, recipe: str, fill: Callable[[Path], None]) -> None:
    """A job's folder with its recipe and what `fill` writes, whole or not at all."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists", expected="a new folder", do=f"choose another name, or remove {folder}"
        )
    with storage(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (scratch / "recipe.yaml").write_text(recipe, encoding="utf-8")
            load_recipe(scratch / "recipe.yaml")
            fill(scratch)
            scratch.chmod(0o755)
            scratch.replace(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
