"""Lesson books: looked at, checked, joined, divided."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from stillroom.contracts.errors import UserError

book_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Books = Annotated[
    list[Path], typer.Argument(help="Folders of lesson books, such as runs/tickets/teach/signals.")
]


@book_app.command(
    epilog="Examples: stillroom book show runs/tickets/teach/signals; "
    "stillroom book show runs/tickets/teach/signals --rows 2 --tokenizer runs/tickets/distil/student"
)
def show(
    folders: Books,
    row: Annotated[Optional[list[str]], typer.Option(help="Key of a row to show. May be repeated.")] = None,  # noqa: UP045
    rows: Annotated[int, typer.Option(help="Show this many rows, the first ones.")] = 0,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder with the book's tokenizer: tokens are shown as text, not as numbers."),
    ] = None,
) -> None:
    """Say what a book holds: teacher, size, what a signal keeps and how exact it is; or rows, decoded."""
    from itertools import islice

    from stillroom.signals import Book
    from stillroom.signals.showing import book_lines, row_lines

    for folder in folders:
        lines = list(book_lines(folder))
        book = Book.open(folder)
        text = _texts(book.header.tokenizer, tokenizer) if tokenizer else str
        for key in [*(row or []), *islice(book, rows)]:
            lines += row_lines(book, key, text)
        print("\n".join(lines))


def _texts(wanted: str, folder: Path) -> Callable[[int], str]:
    """What the tokens of a book are as text; BookError where the tokenizer is another."""
    from stillroom.contracts.errors import BookError
    from stillroom.models.rendering import Renderer

    renderer = Renderer.load(folder)
    if renderer.tokenizer_hash != wanted:
        raise BookError(
            "this book was captured with another tokenizer", got=renderer.tokenizer_hash, expected=wanted
        )
    return lambda token: repr(renderer.tokenizer.decode([token]))


@book_app.command(epilog="Example: stillroom book verify runs/*/teach/signals")
def verify(folders: Books) -> None:
    """Compare every byte of the books with their checksums."""
    from stillroom.signals import Book

    failed = 0
    for folder in folders:
        try:
            book = Book.open(folder)
            book.verify()
        except UserError as error:
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
        else:
            print(f"{folder}: {len(book):,} rows as they were written")
    if failed:
        raise typer.Exit(UserError.exit_code)


@book_app.command(
    epilog="Example: stillroom book merge runs/a/teach/signals runs/b/teach/signals --out books/both"
)
def merge(folders: Books, out: Annotated[Path, typer.Option(help="Folder of the book to write.")]) -> None:
    """Join books of the same tokenizer, template, temperature and kind; a row that comes twice is kept once."""
    from stillroom.signals import Book

    print(f"{out}: {len(Book.merge(folders, out)):,} rows")


@book_app.command(
    epilog="Example: stillroom book split books/both --train books/train --validation books/validation --share 0.05"
)
def split(
    folder: Annotated[Path, typer.Argument(help="Folder of a lesson book.")],
    train: Annotated[Path, typer.Option(help="Folder of the larger book to write.")],
    validation: Annotated[Path, typer.Option(help="Folder of the smaller book to write.")],
    share: Annotated[Optional[float], typer.Option(help="Share of the rows for validation.")] = None,  # noqa: UP045
    rows: Annotated[Optional[int], typer.Option(help="Or their number.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seeds the choice.")] = 0,
) -> None:
    """Divide a book into one to train on and one to validate on, row by row."""
    from stillroom.signals import Book

    if (share is None) == (rows is None):
        raise UserError("a split wants either --share or --rows")
    parts = Book.open(folder).split(train, validation, share=share, rows=rows, seed=seed)
    for part in parts:
        print(f"{part.folder}: {len(part):,} rows")
