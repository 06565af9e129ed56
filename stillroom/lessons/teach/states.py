"""Hidden states into the lesson book, from a teacher that tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.progress import Meter
from stillroom.contracts.recipe import Teacher
from stillroom.models.rendering import Rendered, Renderer
from stillroom.signals.book import Book
from stillroom.signals.head import BookHead
from stillroom.signals.hidden import HiddenSignals

if TYPE_CHECKING:
    from stillroom.models.states import StateReader


def open_states(teacher: Any, settings: Teacher, renderer: Renderer) -> tuple[StateReader, BookHead]:
    """What tells hidden states, and their head: loaded now, for the book's header says which head it is.

    Args:
        teacher: the teacher, or what loads it when asked.
        settings: the recipe's section.
        renderer: whose tokens the book will hold.

    Raises:
        RecipeError: this teacher tells none.
        ModelError: it cannot be loaded, or an adapter sits on its head.
    """
    if not (settings.api or settings.model.endswith(".gguf")):
        # Only here, where it is used: transformers is large.
        from stillroom.models.local import LocalModel
        from stillroom.models.states import StateReader

        local = getattr(teacher, "teacher", teacher)
        if isinstance(local, LocalModel):
            reader = StateReader(local)
            head, known = reader.head, renderer.vocab_size
            # A padded head has columns for no token.
            bias = None if head.bias is None else head.bias[:known]
            kept = BookHead.of(head.weight[:known], bias, scale=head.scale, softcap=head.softcap)
            return reader, kept
    what = "an API" if settings.api else "a .gguf file"
    raise RecipeError(
        "this teacher does not tell its hidden states",
        got=f"teach.signal.kind: hidden, of {what}",
        expected="a transformers model on this machine",
        do="set teach.signal.kind to top-k for an API, to head+draws for a .gguf file, or name the teacher's Hugging Face "
        "folder",
    )


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
