"""Has a lesson seen the evaluation? Questions that stand in evaluation files, whole or by 13 words in a row.

Thirteen words is what GPT-3's authors compared (arXiv 2005.14165, appendix C), words being runs of letters and digits
whatever their case and punctuation. A question of eight to twelve words is looked for whole inside longer texts; a shorter
one counts only where it is the whole question. Thirteen words that stand in more than ten questions of a file are its
boilerplate and tell nothing.

Questions of one making, such as messages to one shop, share thirteen words without any having leaked. Of what was found
two things are therefore told: how much of a question stood there, and how often a file's own questions share a run with
one another, which is what a fresh question of the same making would do by chance.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.contracts.conversations import QUESTION_FIELDS
from stillroom.contracts.recipe import PromptSource
from stillroom.contracts.records import Message
from stillroom.lessons.expand.diversity import Reservoir
from stillroom.lessons.prompts.questions import user_text
from stillroom.lessons.prompts.readers import read_rows
from stillroom.lessons.prompts.sources import read_questions

GRAM = 13
SHORTEST = 8
"""Words of the shortest question that is looked for inside other texts."""
COMMON = 10
"""A run of words in more questions of one file than this is boilerplate."""
NEARLY_WHOLE = 0.8
"""Share of a question's words from which on it counts as known (so Llama 2's authors, arXiv 2307.09288, appendix A.6)."""
_WORD = re.compile(r"[^\W_]+")
_SHOWN = 5
_MANY = 0.01
"""Share of the answers from which on leaving them out is worth a word."""


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
    whole: int = 0
    """Lessons among these in which a question stands whole or nearly so."""
    alike: float = 0.0
    """Share of its different questions that would be a leak of another of them."""
    found: list[str] = field(default_factory=list)
    """The first few passages that were found."""
    own: bool = False
    """They are the run's own questions that are held out of training: only what is trained on must not hold them."""


@dataclass(frozen=True)
class Leak:
    """What a conversation has in common with an evaluation file."""

    file: str
    passage: str
    """The words."""
    share: float
    """How much of the question they are."""

    def __str__(self) -> str:
        return f"{self.file}, {self.share:.0%} of a question: {self.passage[:200]}"


class HeldOut:
    """The questions that must not be learned from, looked up by their words.

    In memory are a few dozen numbers a question, whatever the number of lessons.
    """

    def __init__(self) -> None:
        self.files: list[Named] = []
        self.compared = 0
        """Conversations that were looked at."""
        self._whole: dict[int, int] = {}
        self._grams: dict[int, int] = {}
        self._lengths: set[int] = set()
        self._places = array("I")  # of each question its file
        self._sizes = array("I")  # and how many words it has

    def add(self, path: Path, name: str, source: PromptSource | None = None) -> None:
        """Read an evaluation file in any form that prompts are read in, published benchmarks among them.

        Args:
            path: the file or folder.
            name: what it is called in manifest and card.
            source: how it is read, where the recipe says it.

        Raises:
            DataError: the file is missing, or a line has no question.
        """
        source = source or PromptSource(file=str(path))
        rows = read_rows(source.file, path, source.pattern)
        # As it is asked, with its choices or its instruction, and bare: a leak may be either.
        asked = (user_text(question.messages) for question in read_questions(source, path))
        self.add_questions(((text, _bare(row)) for text, (_, row) in zip(asked, rows, strict=False)), name)

    def add_own(self, questions: Iterable[Sequence[str]], others: Iterable[str]) -> None:
        """Take in the run's own questions that are held out of training; after all files, whose questions come before them.

        Args:
            questions: the wordings of each.
            others: the questions that are trained on. What more than ten of these have in common is boilerplate as well:
                few may be held out, and all of them asked in the same way. Runs that are half of it tell nothing either.
        """
        self._add(questions, "held-out questions", own=True, others=others)

    def add_questions(self, questions: Iterable[Sequence[str]], name: str) -> None:
        """Take in questions under a file's name, each in one wording or more."""
        self._add(questions, name)

    def _add(
        self, questions: Iterable[Sequence[str]], name: str, *, own: bool = False, others: Iterable[str] = ()
    ) -> None:
        file, first = Named(name, own=own), len(self._places)
        counts: Counter[int] = Counter()
        owners: dict[int, int] = {}
        short: dict[int, tuple[int, int]] = {}
        sample = Reservoir[str]()
        asked: list[list[int]] = []
        for wordings in questions:
            file.questions += 1
            known = [tokens for tokens in map(words, wordings) if tokens]
            if not known or self._whole.get(_mark(known[0]), -1) >= first:
                continue  # it stands in this file already
            number = len(self._places)
            self._places.append(len(self.files))
            self._sizes.append(min((len(tokens) for tokens in known if len(tokens) >= SHORTEST), default=1))
            for tokens in known:
                self._whole.setdefault(_mark(tokens), number)
                if SHORTEST <= len(tokens) < GRAM:
                    short[_mark(tokens)] = len(tokens), number
            runs = [[_mark(gram) for gram in _runs(tokens, GRAM)] for tokens in known]
            asked += runs if own else []
            grams = {gram for run in runs for gram in run}
            for gram in grams:
                owners.setdefault(gram, number)
            counts.update(grams)
            sample.add(wordings[0])
        for text in others:
            counts.update({mark for gram in _runs(words(text), GRAM) if (mark := _mark(gram)) in owners})
        lengths = {length for length, _ in short.values()}
        self._lengths |= lengths | ({GRAM} if counts else set())
        for mark, (_, number) in short.items():
            self._grams.setdefault(mark, number)
        if own:
            telling = {gram for run in asked for gram in _telling(run, counts)}
            counts = Counter({gram: counts[gram] for gram in telling})
        for gram, number in owners.items():
            if 0 < counts[gram] <= COMMON:
                self._grams.setdefault(gram, number)
        alike = [_touches_another(words(text), counts, short.keys(), lengths) for text in sample.texts]
        file.alike = sum(alike) / max(len(alike), 1)
        self.files.append(file)

    def leak(self, messages: Sequence[Message], *, trained: bool = True) -> Leak | None:
        """What a conversation has in common with the evaluation, or None; it is counted.

        Args:
            messages: the conversation.
            trained: whether it is trained on; what is itself held out may be like the rest of what is.
        """
        self.compared += 1
        found = self._find(messages, trained)
        if found is None:
            return None
        number, passage, share = found
        file = self.files[self._places[number]]
        file.leaks += 1
        file.whole += share >= NEARLY_WHOLE
        if len(file.found) < _SHOWN:
            file.found.append(passage)
        return Leak(file.name, passage, share)

    def _find(self, messages: Sequence[Message], trained: bool) -> tuple[int, str, float] | None:
        """The question of which the most stands in one message, the passage, and its share of the question's words."""
        asked = words(question_text(messages))
        number = self._whole.get(_mark(asked)) if asked else None
        if number is not None and self._counts(number, trained):
            return number, " ".join(asked)[:200], 1.0
        best: tuple[int, str, float] | None = None
        for message in messages:
            tokens = words(str(message.get("content") or ""))
            covered: dict[int, set[int]] = {}
            for length in self._lengths:
                for start, gram in enumerate(_runs(tokens, length)):
                    number = self._grams.get(_mark(gram))
                    if number is not None and self._counts(number, trained):
                        covered.setdefault(number, set()).update(range(start, start + length))
            for number, places in covered.items():
                share = min(1.0, len(places) / self._sizes[number])
                if best is None or share > best[2]:
                    best = number, " ".join(tokens[place] for place in sorted(places)), share
        return best

    def _counts(self, number: int, trained: bool) -> bool:
        return trained or not self.files[self._places[number]].own

    def summary(self) -> dict[str, dict[str, Any]]:
        """For manifest and card, of each file: its questions, the leaks, how many of them were whole questions, how many
        leaks chance explains where lessons and file are of one making, and the first passages found."""
        return {
            file.name: {
                "questions": file.questions,
                "leaks": file.leaks,
                "whole": file.whole,
                "by chance": round(file.alike * self.compared),
                "found": file.found,
            }
            for file in self.files
        }

    def warnings(self) -> Iterator[str]:
        """What the reader should know of each file that questions stand whole in, or that costs more than a few answers."""
        for file in self.files:
            if not file.whole and file.leaks <= _MANY * self.compared:
                continue
            chance = round(file.alike * self.compared)
            leaked = file.leaks > 2 * chance + 3  # the chance is an estimate
            yield (
                f"{file.leaks} answers left out that touch {file.name}, {file.whole} of them with a question whole or "
                f"nearly so; {chance} would by chance, as alike as its questions are to one another"
                + ("; look where these prompts come from" if leaked else "")
            )


def _bare(row: Mapping[str, Any]) -> str:
    """The question's own column."""
    return next(
        (row[name] for name in (*QUESTION_FIELDS, "problem", "ctx") if isinstance(row.get(name), str)), ""
    )


def _telling(grams: Sequence[int], counts: Mapping[int, int]) -> Iterator[int]:
    """The runs of a question, given in order, of which at most half the words are boilerplate."""
    common = {place + n for place, gram in enumerate(grams) if counts[gram] > COMMON for n in range(GRAM)}
    for place, gram in enumerate(grams):
        if 2 * sum(place + n in common for n in range(GRAM)) <= GRAM:
            yield gram


def _touches_another(
    tokens: Sequence[str], counts: Mapping[int, int], short: Container[int], lengths: Iterable[int]
) -> bool:
    """Whether a question would be a leak of another one of its file."""
    if any(2 <= counts[_mark(gram)] <= COMMON for gram in _runs(tokens, GRAM)):
        return True
    return any(
        _mark(run) in short for length in lengths if length < len(tokens) for run in _runs(tokens, length)
    )


def _runs(tokens: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def _mark(tokens: Iterable[str]) -> int:
    return hash(tuple(tokens))
