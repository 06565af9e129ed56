"""How a stage says how far it is; the display lives upstairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Counts one piece of work. The silent base class; displays override `advance`, `note` and `finish`."""

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """`amount` more units are done; `note` is a short word shown beside the bar."""


class Progress:
    """Where stages report to. This base class shows nothing; libraries and tests use it as it is."""

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        """A piece of work of `total` units, of which `done` were finished earlier (a resumed stage)."""
        yield Meter()

    def say(self, text: str) -> None:
        """One line for the reader."""
