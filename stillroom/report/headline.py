"""The few figures that a reader wants first; the page, the console and the model card show the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stillroom.contracts.records import ResultRow
from stillroom.report.rows import (
    Results,
    data_size,
    model_name,
    people_count,
    percent,
    span,
    speed,
    times,
)


@dataclass(frozen=True)
class Headline:
    """One figure: what it is, its value as printed, and what to know about it."""

    label: str
    value: str
    detail: str


def headline(rows: Iterable[ResultRow]) -> list[Headline]:
    """The figures to show first, of those that were measured: quality kept, size, speed, memory."""
    results = Results.of(rows)
    model = results.shipped
    if model is None:
        return []
    found = [_quality(results, model), _size(results, model), _speed(results, model), _memory(results, model)]
    return [item for item in found if item is not None]


def _quality(results: Results, model: str) -> Headline | None:
    for task in results.scored:
        kept, exact = results.find(model, task, "retention"), results.find(model, task, "exact")
        if kept:
            interval = f"; 95% interval {span(kept)}" if span(kept) else ""
            return Headline(
                "Kept", percent(kept.value), f"of the teacher’s exact answers on {task}{interval}"
            )
        if exact:
            interval = f"; 95% interval {span(exact)}" if span(exact) else ""
            return Headline("Right", percent(exact.value), f"exact answers on {task}{interval}")
    for task in results.tasks:
        # A file may not be measured by likelihood; then the figure is the student's before quantisation.
        for name in dict.fromkeys((model, "student")):
            kl, loss = results.find(name, task, "kl"), results.find(name, task, "loss")
            if kl:
                return Headline("Distance to the teacher", f"{kl.value:.3g}", f"KL in nats a token on {task}")
            if loss:
                return Headline("Loss", f"{loss.value:.3g}", f"nats a token on {task}")
    return None


def _size(results: Results, model: str) -> Headline | None:
    size, weights = (results.value(model, "size", key) for key in ("file_bytes", "parameters"))
    weights = weights or results.value("student", "size", "parameters")
    teacher = results.value("teacher", "size", "parameters")
    smaller = f", {times(teacher / weights)} times fewer than the teacher" if weights and teacher else ""
    parameters = f"{people_count(weights)} parameters{smaller}" if weights else ""
    if size:
        return Headline("Size", data_size(size), parameters or model_name(model))
    return Headline("Parameters", people_count(weights), smaller.lstrip(", ")) if weights else None


def _speed(results: Results, model: str) -> Headline | None:
    for unit in ("tokens", "questions"):
        own, teacher = (results.value(name, "speed", f"{unit}_per_second") for name in (model, "teacher"))
        if own:
            beside = f"; the teacher {speed(teacher)}" if teacher else ""
            return Headline("Speed", speed(own), f"{unit} a second on this machine{beside}")
    return None


def _memory(results: Results, model: str) -> Headline | None:
    own, teacher = (results.value(name, "size", "peak_memory_bytes") for name in (model, "teacher"))
    if not own:
        return None
    return Headline(
        "Memory",
        data_size(own),
        f"at its peak; the teacher {data_size(teacher)}" if teacher else "at its peak",
    )
