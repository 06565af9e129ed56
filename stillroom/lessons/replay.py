"""General text that a student goes over beside its lessons, so that it does not forget what it could."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import Replay
from stillroom.lessons.prompts.corpora import corpus_questions
from stillroom.lessons.prompts.questions import question_key
from stillroom.lessons.prompts.sources import read_questions
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.models.rendering import Rendered, Renderer


def replayed(
    spec: Replay, path: Path, renderer: Renderer, length: int, held_out: KeyTable
) -> Iterator[Rendered]:
    """The rows of a recipe's general text, in the file's order.

    Left out are conversations that are longer, that end without an answer, or whose question is held out.

    Args:
        spec: what and how much.
        path: its file or folder.
        renderer: of the student's tokens.
        length: most tokens of a row.
        held_out: keys of the questions that must not be trained on.

    Raises:
        DataError: a file is missing or unusable, or nothing in it can be learned.
    """
    corpus = spec.form == "corpus"
    source, found = spec.source, False
    questions = (
        corpus_questions(source, path, source.title, renderer, length)
        if corpus
        else read_questions(source, path)
    )
    for question in questions:
        if question.answer is None or held_out.get(question_key(question.messages)) is not None:
            continue
        rendered = renderer.lesson([*question.messages, question.answer], tools=question.tools)
        if len(rendered.ids) <= length and rendered.selected:
            found = True
            yield rendered
    if not found:
        raise DataError(
            f"{path} has nothing to replay",
            expected="texts that are not blank" if corpus else "conversations that end with an answer",
            do="check distil.replay.file and distil.replay.form",
        )
