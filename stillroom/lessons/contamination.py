"""Has a lesson seen the evaluation? Questions that stand in evaluation files, whole or by 13 words in a row.

Thirteen words is what GPT-3's authors compared (arXiv 2005.14165, appendix C), words being runs of letters and digits
whatever their case and punctuation. A question of eight to twelve words is looked for whole inside longer texts; a shorter
one counts only where it is the whole question. Thirteen words that stand in more than ten questions of a file are its
boilerplate and tell nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.contracts.conversations import QUESTION_FIELDS
from stillroom.contracts.recipe import PromptSource
from stillroom.contracts.records import Message
from stillroom.lessons.questions import user_text
from stillroom.lessons.readers import read_rows
from stillroom.lessons.sources import read_questions

GRAM = 13
SHORTEST = 8
"""Words of the shortest question that is looked for inside other texts."""
COMMON = 10
"""A run of words in more questions of one file than this is boilerplate."""
_WORD = re.compile(r"[^\W_]+")
_SHOWN = 5


def words(text: str) -> list[str]:
    """A text as it is compared: its words in small letters."""
    return _WORD.findall(text.casefold())


def question_text(messages: Iterable[Message]) -> str:
    """What is asked: all user turns, one after the other."""
    return "\n".join(
        str(message.get("content") or "") for message in messages if message.get("role") == "user"
    )


@dataclass
class Named:
    """One evaluation file and what was found of it."""

    name: str
    questions: int = 0
    leaks: int = 0
    """Lessons that were rejected for it."""
    found: list[str] = field(default_factory=list)
    """The first few passages that were found."""


class HeldOut:
    """The questions that must not be learned from, looked up by their words.

    In memory are a few dozen numbers a question, whatever the number of lessons.
    """

    def __init__(self) -> None:
        self.files: list[Named] = []
        self._whole: dict[int, int] = {}
        self._grams: dict[int, int] = {}
        self._lengths: set[int] = set()

    def add(self, path: Path, name: str) -> None:
        """Read an evaluation file in any form that prompts are read in, published benchmarks among them.

        Raises:
            DataError: the file is missing, or a line has no question.
        """
        rows = read_rows(str(path), path)
        # As it is asked, with its choices or its instruction, and bare: a leak may be either.
        asked = (
            user_text(question.messages) for question in read_questions(PromptSource(file=str(path)), path)
        )
        self.add_questions(((text, _bare(row)) for text, (_, row) in zip(asked, rows, strict=False)), name)

    def add_questions(self, questions: Iterable[Sequence[str]], name: str) -> None:
        """Take in questions under a file's name, each in one wording or more."""
        place = len(self.files)
        file = Named(name)
        counts: Counter[int] = Counter()
        short: dict[int, int] = {}
        for wordings in questions:
            file.questions += 1
            grams: set[int] = set()
            for tokens in map(words, wordings):
                if tokens:
                    self._whole.setdefault(_mark(tokens), place)
                grams.update(map(_mark, _runs(tokens, GRAM)))
                if SHORTEST <= len(tokens) < GRAM:
                    short[_mark(tokens)] = len(tokens)
            counts.update(grams)
        common = {mark for mark, count in counts.items() if count > COMMON}
        if counts:
            self._lengths.add(GRAM)
        self._lengths.update(short.values())
        for mark in [*(counts.keys() - common), *short]:
            self._grams.setdefault(mark, place)
        self.files.append(file)

    def leak(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """The evaluation file that a conversation touches and the words by which it does, or None; it is counted."""
        found = self._find(messages)
        if found is None:
            return None
        place, passage = found
        file = self.files[place]
        file.leaks += 1
        if len(file.found) < _SHOWN:
            file.found.append(passage)
        return file.name, passage

    def _find(self, messages: Sequence[Message]) -> tuple[int, str] | None:
        asked = words(question_text(messages))
        if asked and (place := self._whole.get(_mark(asked))) is not None:
            return place, " ".join(asked)[:200]
        for message in messages:
            tokens = words(str(message.get("content") or ""))
            for length in self._lengths:
                for gram in _runs(tokens, length):
                    if (place := self._grams.get(_mark(gram))) is not None:
                        return place, " ".join(gram)
        return None

    def summary(self) -> dict[str, dict[str, Any]]:
        """For manifest and card: of each file its questions, the leaks and the first passages found."""
        return {
            file.name: {"questions": file.questions, "leaks": file.leaks, "found": file.found}
            for file in self.files
        }


def _bare(row: Mapping[str, Any]) -> str:
    """The question's own column."""
    return next(
        (row[name] for name in (*QUESTION_FIELDS, "problem", "ctx") if isinstance(row.get(name), str)), ""
    )


def _runs(tokens: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def _mark(tokens: Iterable[str]) -> int:
    return hash(tuple(tokens))
