"""Hidden states into the lesson book, from a teacher that tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillroom.contracts.progress import Meter
from stillroom.models.rendering import Rendered, Renderer
from stillroom.signals.book import Book
from stillroom.signals.head import BookHead
from stillroom.signals.hidden import HiddenSignals

if TYPE_CHECKING:
    from stillroom.models.states import StateReader


def open_states(teacher: Any, renderer: Renderer) -> tuple[StateReader, BookHead]:
    """What tells hidden states, and their head: loaded now, for the book's header says which head it is.

    Args:
        teacher: a LocalModel, or what loads it when asked for its `teacher`; a recipe promises no other kind.
        renderer: whose tokens the book will hold.

    Raises:
        ModelError: it cannot be loaded, or an adapter sits on its head.
    """
    # Only here, where it is used: transformers is large.
    from stillroom.models.states import StateReader

    reader = StateReader(getattr(teacher, "teacher", teacher))
    head, known = reader.head, renderer.vocab_size
    # A padded head has columns for no token.
    bias = None if head.bias is None else head.bias[:known]
    return reader, BookHead.of(head.weight[:known], bias, scale=head.scale, softcap=head.softcap)


def append_states(
    book: Book, rows: Sequence[Rendered], reader: StateReader, head: BookHead, meter: Meter
) -> None:
    """Write the rows that the book lacks; whole windows are read, so that a resumed capture repeats the same batches.

    Raises:
        ModelError: the teacher's logits are not those of its states and head.
        BookError: a state does not fit into the numbers that the book keeps.
    """
    keys = [book.key(row.ids, row.mask) for row in rows]
    if all(book.has(key) for key in keys):
        meter.advance(len(rows))
        return
    reader.prove(min(rows, key=lambda row: len(row.ids)))
    for row, key, states in zip(rows, keys, reader.states(rows), strict=True):
        if not book.has(key):
            book.append(row.ids, row.mask, HiddenSignals.of(states, head))
        meter.advance()
