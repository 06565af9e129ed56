"""How progress looks: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from stillroom.contracts.progress import Meter, Progress

EVERY = 10.0
"""Seconds between two plain lines."""
_TELLING = 0.01
"""Share of the work after which its pace tells the time left."""


def open_progress() -> Progress:
    """Bars where standard error is a terminal, else plain lines."""
    console = Console(stderr=True)
    return BarProgress(console) if console.is_terminal else PlainProgress()


def duration(seconds: float) -> str:
    """1:05, 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Rate:
    """Units a second since the start of this attempt, and the time left."""

    def __init__(self, total: float | None, done: float) -> None:
        self.total, self.done, self.start = total, done, done
        self.began = time.monotonic()

    def text(self, unit: str) -> str:
        seconds = time.monotonic() - self.began
        rate = (self.done - self.start) / seconds if seconds > 0 else 0.0
        text = f"{rate:,.1f} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"
        # A batch's first answers come late: too little is done to say how long the rest takes.
        if self.total and rate > 0 and self.done - self.start >= _TELLING * (self.total - self.start):
            text += f", {duration((self.total - self.done) / rate)} left"
        return text


class _PlainMeter(Meter):
    def __init__(self, label: str, total: float | None, unit: str, done: float) -> None:
        self.label, self.unit, self.rate = label, unit, _Rate(total, done)
        self.shown = time.monotonic()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.rate.done += amount
        if time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            total = f" of {self.rate.total:,.0f}" if self.rate.total else ""
            extra = f", {note}" if note else ""
            line = f"  {self.label}: {self.rate.done:,.0f}{total} {self.unit}, {self.rate.text(self.unit)}{extra}"
            print(line, file=sys.stderr, flush=True)


class PlainProgress(Progress):
    """One line every ten seconds."""

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        """A piece of work; says nothing if it ends within ten seconds."""
        yield _PlainMeter(label, total, unit, done)

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr, flush=True)


class _BarMeter(Meter):
    def __init__(self, bars: Bars, task: TaskID, unit: str, rate: _Rate) -> None:
        self.bars, self.task, self.unit, self.rate = bars, task, unit, rate

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.rate.done += amount
        figures = self.rate.text(self.unit) + (f", {note}" if note else "")
        self.bars.update(self.task, completed=self.rate.done, figures=figures)


class BarProgress(Progress):
    """A live bar with rate and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Bars | None = None

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        """A bar while the work lasts; meters may be nested."""
        outermost = self._bars is None
        if self._bars is None:
            self._bars = Bars(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:,.0f}"),
                TextColumn("[dim]{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        bars = self._bars
        task = bars.add_task(label, total=total, completed=int(done), figures="")
        try:
            yield _BarMeter(bars, task, unit, _Rate(total, done))
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
