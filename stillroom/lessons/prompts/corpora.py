"""Plain texts, cut into blocks that the teacher reads and the student goes on pretraining with.

A block goes the way of an answer that a log holds already (`lessons.prompts.logs`). It answers no question: the
one turn before it, in the role `source`, says where it stands and is shown to no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import PromptSource
from stillroom.contracts.records import SOURCE
from stillroom.lessons.prompts.documents import read_documents
from stillroom.lessons.prompts.questions import Question
from stillroom.models.rendering import Renderer

_WIDE = 8
"""Characters a token that are looked at to find the end of a block; where a text has more, blocks come out shorter."""


def corpus_questions(
    source: PromptSource, path: Path, title: str, renderer: Renderer, length: int
) -> Iterator[Question]:
    """The blocks of a corpus, none of which crosses the end of a document.

    Args:
        source: the recipe's entry; its limit counts blocks.
        path: a text file, a table with a column of texts, a folder or zip file of them.
        title: of the source.
        renderer: of the tokenizer that tokens are counted in.
        length: most tokens of a block, a beginning-of-sequence token included.

    Raises:
        DataError: a file is missing or is no text, or there is none that is not blank.
    """
    count = 0
    for block in islice(_blocks_of(source, path, renderer, length), source.limit):
        count += 1
        yield Question(
            [{"role": SOURCE, "content": f"{title}, block {count}"}],
            answer={"role": "assistant", "content": block},
            answered_by=title,
            finish="stop",
        )
    if count == 0:
        raise DataError(f"{path} has no text", expected="a text that is not blank", do="check the file")


def _blocks_of(source: PromptSource, path: Path, renderer: Renderer, length: int) -> Iterator[str]:
    for pieces in read_documents(source.file, path, source.pattern):
        yield from blocks(pieces, renderer, length)


def blocks(pieces: Iterable[str], renderer: Renderer, length: int) -> Iterator[str]:
    """A text cut into blocks of at most `length` tokens, as the renderer counts them; put together they are the text.

    Blank blocks are left out. In memory are a few blocks, however long the text is.

    Args:
        pieces: the text, a line or so at a time.
        renderer: counts.
        length: tokens, at least 2.
    """
    held, width = "", _WIDE * length
    for part in (piece[at : at + width] for piece in pieces for at in range(0, len(piece), width)):
        held += part
        while len(held) >= 2 * width:
            end = _end(held[:width], renderer, length)
            yield from _unless_blank(held[:end])
            held = held[end:]
    while held:
        end = _end(held[:width], renderer, length)
        yield from _unless_blank(held[:end])
        held = held[end:]


def _unless_blank(block: str) -> Iterator[str]:
    if not block.isspace():
        yield block


def _end(window: str, renderer: Renderer, length: int) -> int:
    """How many characters of the window make a block. A text that is cut is tokenised anew, so the cut is tried."""
    end = len(window)
    while (over := len(renderer.text(window[:end]).ids) - length) > 0:
        starts = renderer.token_starts(window[:end])
        end = max(1, starts[-over])
        if end == 1:
            break
    return end
