"""The command line. Each verb imports its rooms only after parsing, so that --help is quick."""

from stillroom.cli.books import book_app
from stillroom.cli.entry import app, main

__all__ = ["app", "book_app", "main"]
