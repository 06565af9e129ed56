"""Documents cut into passages that a question can be asked about."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import Task
from stillroom.lessons.prompts.readers import HUB, open_files, read_rows

_TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
_TEXTS = ("text", "content", "body", "document", "page", "article", "context", "passage")
_SHORTEST = 80
"""Characters under which a passage says too little to be asked about."""


def read_passages(name: str, path: Path, size: int, pattern: str | None = None) -> Iterator[str]:
    """The passages of a text file, a table with a column of texts, a folder or a zip file of them, in order.

    Args:
        name: the source as the recipe names it.
        path: the file or folder.
        size: most characters in a passage.
        pattern: of a folder or zip file, the files to read.

    Raises:
        DataError: a file is missing or is no text, or a row has no text.
    """
    for lines in read_documents(name, path, pattern):
        yield from passages(lines, size)


def read_texts(task: Task, path: Path) -> Iterator[Iterator[str]]:
    """The texts of an evaluation's file, each as its lines; errors as `read_passages`."""
    return read_documents(task.file or "", path, task.pattern)


def read_documents(name: str, path: Path, pattern: str | None = None) -> Iterator[Iterator[str]]:
    """The texts that `read_passages` cuts, whole, each as its lines; to be read before the next is asked for."""
    if name.startswith(HUB) or any(path.name.lower().removesuffix(".gz").endswith(end) for end in _TABLES):
        for where, row in read_rows(name, path, pattern):
            column = next((column for column in _TEXTS if isinstance(row.get(column), str)), None)
            if column is None:
                raise DataError(
                    f"{where} has no text", got=", ".join(row), expected=f"one of {', '.join(_TEXTS)}"
                )
            yield iter(row[column].splitlines(keepends=True))
        return
    for title, file in open_files(path, pattern):
        with file:
            yield _lines(file, title)


def _lines(file: Iterator[bytes], title: str) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{title}, line {number} is not text", got=str(error), expected="UTF-8") from None


def passages(lines: Iterator[str] | list[str], size: int) -> Iterator[str]:
    """A text in passages of whole paragraphs, up to `size` characters; a longer paragraph is cut between sentences.

    The last paragraph of a passage opens the next one too if it is short, so that what refers back is understood.
    """
    held: list[str] = []
    for paragraph in _paragraphs(lines, size):
        if held and len("\n\n".join([*held, paragraph])) > size:
            yield from _whole(held)
            last = held[-1]
            held = (
                [last]
                if len(held) > 1 and len(last) + len(paragraph) + 2 <= size and len(last) < size // 4
                else []
            )
        held.append(paragraph)
    yield from _whole(held)


def _whole(held: list[str]) -> Iterator[str]:
    passage = "\n\n".join(held)
    if len(passage) >= _SHORTEST:
        yield passage


def _paragraphs(lines: Iterator[str] | list[str], size: int) -> Iterator[str]:
    held = ""
    for line in lines:
        if line.strip():
            held += line if line.endswith("\n") else line + "\n"
            while len(held) > size:
                cut = _cut(held, size)
                yield held[:cut].strip("\n")
                held = held[cut:]
        elif held.strip():
            yield held.strip("\n")
            held = ""
    if held.strip():
        yield held.strip("\n")


def _cut(text: str, size: int) -> int:
    """Where a long paragraph is cut: after a sentence, else a line, else a word, else anywhere."""
    for mark in (". ", ".\n", "\n", " "):
        place = text.rfind(mark, size // 2, size)
        if place > 0:
            return place + len(mark)
    return size


class DrawnPassages(Sequence[str]):
    """Passages drawn without replacement, in the order of the documents; all of them where there are no more.

    The documents are read once to count and once as the passages are taken in turn, and never held: Knuth, The Art of
    Computer Programming 2, algorithm 3.4.2 S.

    Args:
        read: gives all passages, the same ones each time.
        count: how many are drawn.
        seed: seeds the draw.
    """

    def __init__(self, read: Callable[[], Iterator[str]], count: int, seed: int) -> None:
        self._read, self._seed = read, seed
        self._all = sum(1 for _ in read())
        self._wanted = min(count, self._all)
        self._next = self._drawn()
        self._place = -1
        self._last = ""

    def _drawn(self) -> Iterator[str]:
        left, wanted, draw = self._all, self._wanted, random.Random(self._seed)
        for passage in self._read():
            if draw.random() * left < wanted:
                wanted -= 1
                yield passage
            left -= 1

    def __len__(self) -> int:
        return self._wanted

    def __getitem__(self, place: int) -> str:  # type: ignore[override]  # no slices: passages are taken in turn
        if not 0 <= place < self._wanted:
            raise IndexError(place)
        if place < self._place:
            self._next, self._place = self._drawn(), -1
        while self._place < place:
            self._last, self._place = next(self._next), self._place + 1
        return self._last
