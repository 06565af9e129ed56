"""Reading questions from files, with any sensible column name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from stillroom.contracts.conversations import conversation_of
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Message, Prompt, content_key


def read_prompts(path: Path, name: str, limit: int | None = None) -> Iterator[Prompt]:
    """The questions of a JSONL or text file, one at a time, in the file's order.

    A JSON line is read by `conversation_of`. Other files are read as text, one question a line.

    Args:
        path: the file.
        name: what the prompts' `source` says.
        limit: at most this many.

    Raises:
        DataError: the file is missing, empty or malformed; the message names the line.
    """
    found = (
        _from_json(path, name) if path.suffix in (".jsonl", ".json", ".ndjson") else _from_text(path, name)
    )
    count = 0
    for prompt in itertools.islice(found, limit):
        count += 1
        yield prompt
    if count == 0:
        raise DataError(f"{path} has no questions", expected="at least one line", do="check the file")


def _from_json(path: Path, name: str) -> Iterator[Prompt]:
    for number, line in enumerate(read_lines(path), 1):
        messages, reference = conversation_of(line, f"{path}, line {number}")
        yield Prompt(messages, name, reference=reference)


def _from_text(path: Path, name: str) -> Iterator[Prompt]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield Prompt([{"role": "user", "content": line.rstrip("\n")}], name)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="check the path; it is relative to the recipe") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", got=str(error), expected="UTF-8 text or JSONL") from None


def question_key(messages: Iterable[Message]) -> str:
    """A key under which the same question is recognised whatever its case and spacing."""
    text = " ".join(message["content"] for message in messages if message["role"] == "user")
    return content_key(" ".join(text.casefold().split()))
