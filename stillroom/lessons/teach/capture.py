"""Writing the lesson book: what the teacher thought at each token of the lessons."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Answer
from stillroom.lessons.teach.alternatives import append_alternatives
from stillroom.lessons.teach.answers import lesson_messages
from stillroom.lessons.teach.asking import windows
from stillroom.lessons.teach.states import append_states, open_states
from stillroom.models.carrying import Laid
from stillroom.models.endpoint import Endpoint
from stillroom.models.rendering import Rendered, Renderer
from stillroom.models.vllm_scoring import MOST, VllmScorer
from stillroom.signals.book import Book, BookHeader
from stillroom.signals.capture import capture, entries_within, from_top_logprobs
from stillroom.signals.counter import token_keys
from stillroom.signals.error import noise
from stillroom.signals.head import HEAD, BookHead
from stillroom.signals.header import HIDDEN
from stillroom.signals.showing import sample_of

_WINDOW = 512
"""Lessons scored together. Fixed by their order, so that a resumed capture repeats the same batches."""


class Scorer(Protocol):
    """A model that tells its logits over given texts."""

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row in order, [selected, vocab], of any floating dtype."""
        ...


def capture_book(
    folder: Path,
    recipe: Recipe,
    answers: Iterable[Answer],
    teacher: Any,
    renderer: Renderer,
    progress: Progress,
) -> dict[str, Any]:
    """Write the signals of every answer's lesson into the book at `folder`.

    A book of other settings that lies there is written anew; one of the same settings is continued.

    Args:
        folder: the book's folder.
        recipe: its teacher, signal and temperature settings.
        answers: the teacher's answers with the tools of their questions, in a fixed order.
        teacher: a Scorer. An API is not asked through it: answers carry their alternatives, or vLLM reads the lessons.
        renderer: lays out the lessons as the student will see them.
        progress: where to report to.

    Returns:
        counts for the manifest: rows, tokens with signals, bytes a token, lessons without a signal, the
        signals' noise (see `stillroom.signals.error`); of a book of hidden states, the bytes of its head.

    Raises:
        RecipeError: the teacher cannot give signals of this kind, or at this temperature.
        ModelError: its logits are not those of its last hidden state and its head.
    """
    lessons = _lessons(recipe, answers, renderer)
    signal, counts = recipe.teach.signal, {"without signal": 0}
    if recipe.teacher.api is None or signal.source == "prompt_logprobs":
        book = capture_rows(folder, recipe, (row for _, row in lessons), teacher, renderer, progress)
    else:
        _check_temperature(recipe)
        book = _open(folder, _header(recipe, renderer, None), None)
        with book, progress.meter("teacher signals", None, "lessons") as meter:
            for window in windows(lessons, _WINDOW):
                counts["without signal"] += append_alternatives(book, window, renderer, meter)
    found: dict[str, float] = {}
    if signal.kind == "head+draws" and book.signals:
        found["noise"] = round(noise(sample_of(book)), 3)
        progress.say(f"signals: error at most {found['noise']:g} of that of one drawn label a token")
    size = sum(path.stat().st_size for path in folder.glob("shard-*"))
    if signal.kind == HIDDEN:
        found["bytes of the head"] = (folder / HEAD).stat().st_size
    return {
        "rows": len(book),
        "signals": book.signals,
        "bytes": size,
        "bytes a token": round(size / max(book.signals, 1), 2),
        **{key: value for key, value in (counts | found).items() if value},
    }


def capture_rows(
    folder: Path,
    recipe: Recipe,
    rows: Iterable[Rendered],
    teacher: Any,
    renderer: Renderer,
    progress: Progress,
) -> Book:
    """Write the signals of given texts into the book at `folder`, which is closed then.

    Args:
        rows: the texts as tokens, in a fixed order; who wrote them does not matter.
        folder, recipe, teacher, renderer, progress: as for `capture_book`.

    Raises:
        RecipeError: the teacher cannot give signals of this kind, or at this temperature.
        ModelError: its logits are not those of its last hidden state and its head.
    """
    signal = recipe.teach.signal
    _check_temperature(recipe)
    reader, head = None, None
    if signal.kind == HIDDEN:
        reader, head = open_states(teacher, renderer)
    book = _open(folder, _header(recipe, renderer, head), head)
    with book, progress.meter("teacher signals", None, "lessons") as meter:
        for window in windows(rows, _WINDOW):
            if reader is not None and head is not None:
                append_states(book, window, reader, head, meter)
            elif recipe.teacher.api is None:
                _from_logits(book, window, teacher, signal, meter)
            else:
                _from_prompts(book, window, _reader(recipe, renderer), meter)
    return book


def _header(recipe: Recipe, renderer: Renderer, head: BookHead | None) -> BookHeader:
    tokenizer, template, vocab = renderer.tokenizer_hash, renderer.template_hash, renderer.vocab_size
    if head is not None:
        return BookHeader.of_head(tokenizer, template, head, teacher=recipe.teacher.model, vocab=vocab)
    return BookHeader(
        tokenizer=tokenizer,
        template=template,
        vocab=vocab,
        temperature=recipe.capture_temperature,
        kind=recipe.teach.signal.kind,
        budget=recipe.teach.signal.bytes_per_token,
        teacher=recipe.teacher.model,
    )


def _check_temperature(recipe: Recipe) -> None:
    if recipe.teacher.api and recipe.capture_temperature != 1:
        raise RecipeError(
            "an API's log-probabilities are those of temperature 1",
            got=f"distil.temperature: {recipe.capture_temperature:g}",
            expected="distil.temperature: 1",
            do="set it to 1, or have a local teacher, whose signals can be captured at any temperature",
        )


def _open(folder: Path, header: BookHeader, head: BookHead | None) -> Book:
    """The book to go on with. One of other settings goes; a damaged one is the owner's to judge: it was paid for."""
    if (folder / "header.json").is_file() and BookHeader.read(folder) != header:
        shutil.rmtree(folder)
    return Book.create(folder, header, head)


def _lessons(
    recipe: Recipe, answers: Iterable[Answer], renderer: Renderer
) -> Iterator[tuple[Answer, Rendered]]:
    for answer in answers:
        messages = lesson_messages(answer.messages, reasoning=recipe.teach.reasoning)
        rendered = renderer.lesson(messages, complete=answer.finish == "stop", tools=answer.tools)
        if rendered.selected and len(rendered.ids) <= recipe.distil.max_length:
            yield answer, Laid(rendered.ids, rendered.mask, messages, answer.finish == "stop", answer.tools)


def _from_logits(book: Book, rows: Sequence[Rendered], teacher: Scorer, signal: Any, meter: Meter) -> None:
    keys = [book.key(row.ids, row.mask) for row in rows]
    if all(book.has(key) for key in keys):
        meter.advance(len(rows))
        return
    temperature = book.header.temperature
    for row, key, logits in zip(rows, keys, teacher.logits(rows), strict=True):
        if not book.has(key):
            seeds = token_keys(key, torch.tensor(row.mask).nonzero().flatten())
            # A padded head has columns for no token; their mass is the softmax's, never a target.
            signals = capture(
                logits[:, : book.header.vocab],
                keys=seeds.to(logits.device),
                temperature=temperature,
                budget=signal.bytes_per_token,
                kind=signal.kind,
            )
            book.append(row.ids, row.mask, signals)
        meter.advance()


def _reader(recipe: Recipe, renderer: Renderer) -> VllmScorer:
    signal, teacher = recipe.teach.signal, recipe.teacher
    return VllmScorer(
        Endpoint.of(teacher.api or "", teacher.api_key_env),
        teacher.model,
        renderer,
        top=min(MOST, entries_within(signal.bytes_per_token, renderer.vocab_size)),
        concurrency=recipe.teach.concurrency,
        timeout=recipe.teach.timeout,
    )


def _from_prompts(book: Book, rows: Sequence[Rendered], reader: VllmScorer, meter: Meter) -> None:
    """Signals of what a server lists for given texts; each row that the book lacks is sent."""
    missing = {key: row for row in rows if not book.has(key := book.key(row.ids, row.mask))}
    meter.advance(len(rows) - len(missing))
    for (key, row), (ids, logprobs) in zip(
        missing.items(), reader.top_logprobs(missing.values()), strict=True
    ):
        seeds = token_keys(key, torch.tensor(row.mask).nonzero().flatten())
        book.append(row.ids, row.mask, from_top_logprobs(ids, logprobs, keys=seeds))
        meter.advance()
