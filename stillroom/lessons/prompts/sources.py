"""Reading questions from files: benchmarks, logs and tables are recognised, and what was recognised is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import PromptSource, Recipe, Task
from stillroom.lessons.prompts.benchmarks import FORMS
from stillroom.lessons.prompts.columns import guessed_question, named_question
from stillroom.lessons.prompts.given import with_given_answer
from stillroom.lessons.prompts.logs import is_logged, logged_question, own_parameters
from stillroom.lessons.prompts.questions import Question, question_key, user_text
from stillroom.lessons.prompts.readers import HUB, Row, read_rows
from stillroom.lessons.teach.keyed import KeyTable

__all__ = ["question_key", "question_of", "read_questions", "user_text"]


def evaluation_sources(recipe: Recipe) -> Iterator[PromptSource]:
    """The files whose questions must not be trained on."""
    yield from (source_of(task) for task in recipe.evaluate.tasks if task.file and task.asks)
    if chains := recipe.evaluate.chains:
        yield PromptSource(file=chains.file)
    for name in recipe.filter.decontaminate:
        yield PromptSource(file=name)
    if recipe.route and recipe.route.file:
        yield PromptSource(file=recipe.route.file)


def held_out_keys(recipe: Recipe, locate: Callable[[str], Path]) -> KeyTable:
    """Keys of all questions that must not be trained on; `locate` finds a recipe's file."""
    keys = KeyTable()
    for source in evaluation_sources(recipe):
        for question in read_questions(source, locate(source.file)):
            keys.put(question_key(question.messages), 0)
    return keys


def source_of(task: Task) -> PromptSource:
    """An evaluation's file as a source of questions, so that it is read in the same way as prompts are."""
    return PromptSource(file=task.file or "", form=task.form, pattern=task.pattern)


def read_questions(
    source: PromptSource, path: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Question]:
    """The questions of a source, one at a time, in the file's order.

    Args:
        source: the recipe's entry.
        path: its file or folder on this machine.
        say: told once for each way in which rows of this source are read.

    Raises:
        DataError: the file is missing, empty or malformed, or a row has no question; the message names the line.
        MissingExtra: a library that this kind of file needs is not installed.
    """
    said: set[str] = set()
    count = 0
    rows = itertools.islice(_with_answers(source, path), source.limit)
    for where, row in rows:
        question, how = question_of(source, row, where)
        if how not in said and len(said) < 8:
            said.add(how)
            say(f"{source.title}: {how}")
        if source.answers == "given":
            question = with_given_answer(question, source.title)
        if source.stratify is not None:
            question = question.with_stratum(_stratum(source.stratify, row, where))
        count += 1
        yield question
    if count == 0:
        raise DataError(f"{path} has no questions", expected="at least one line", do="check the file")


def question_of(source: PromptSource, row: Row, where: str) -> tuple[Question, str]:
    """The question of one row, with tools and an answer's form of its own, and how it was read, in a few words.

    Raises:
        DataError: the row has no question.
    """
    question, how = _question(source, row, where)
    own = own_parameters(row)
    return (replace(question, **own) if question.tools is None and own else question), how


def _stratum(column: str, row: Row, where: str) -> object:
    if column in row:
        return row[column]
    if column == "file":
        return where.rpartition(", ")[0]
    raise DataError(f"{where} has no column {column} to stratify by", got=", ".join(map(str, row)))


def _question(source: PromptSource, row: Row, where: str) -> tuple[Question, str]:
    if source.columns:
        said = ", ".join(f"{part} from `{column}`" for part, column in source.columns.items())
        return named_question(row, dict(source.columns), where), said
    if source.form == "log" or (source.form == "auto" and is_logged(row)):
        return logged_question(row, where), "a log of requests and answers"
    if source.form not in ("auto", "table"):
        if not FORMS[source.form].fits(row):
            raise DataError(
                f"{where} is not a row of {source.form}", got=f"columns {', '.join(map(str, row))}"
            )
        return _read(source.form, row, where), f"the form of {source.form}"
    if source.form == "auto":
        for name, form in FORMS.items():
            if form.fits(row):
                return _read(name, row, where), f"the form of {name}"
    return guessed_question(row, where)


def _read(form: str, row: Row, where: str) -> Question:
    try:
        return FORMS[form].read(row)
    except DataError as error:
        raise DataError(f"{where}: {error.what}", got=error.got, expected=error.expected) from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} is not a row of {form}",
            got=f"{type(error).__name__}: {error}",
            do="say how to read it: form or columns of this source in the recipe",
        ) from None


def _with_answers(source: PromptSource, path: Path) -> Iterator[tuple[str, Row]]:
    """The rows; those of a BFCL file with the right calls, which are published in a folder beside it."""
    rows = read_rows(source.file, path, source.pattern)
    answers = path.parent / "possible_answer" / path.name
    if not source.file.startswith(HUB) and answers.is_file():
        right = {row["id"]: row.get("ground_truth") for _, row in read_rows(str(answers), answers)}
        yield from ((where, {**row, "ground_truth": right.get(row.get("id"))}) for where, row in rows)
    elif "irrelevance" in path.name:
        yield from ((where, {**row, "ground_truth": []}) for where, row in rows)
    else:
        yield from rows
