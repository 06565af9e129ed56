"""What is done in processes of their own between the rounds: the student writes, the teacher scores what it wrote.

Teacher and student are never in memory together, and what either took is free again when its process ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.contracts.child import Advance
from stillroom.contracts.files import read_lines, write_lines
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Request, Sampling
from stillroom.lessons.teach.capture import capture_rows
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.local import LocalModel
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import student_source
from stillroom.models.rendering import Rendered, Renderer


def write(job: str, advance: Advance) -> dict[str, int]:
    """Have a model answer files of questions.

    Args:
        job: JSON: `model`, a folder; `max_new_tokens`, `batch_size`, `trust_remote_code`; `papers`, a list of {questions,
            out, temperature, seed}. `questions` is a JSONL file of {key, messages, tools}; `out` becomes the JSONL file of
            {key, prompt, answer, text, finish}, prompt and answer as token ids, and is written whole or not at all.
        advance: told each answer.
    """
    settings = json.loads(job)
    model = LocalModel(
        settings["model"],
        batch_size=settings["batch_size"],
        trust_remote_code=settings["trust_remote_code"],
    )
    return {"answers": sum(_answer(model, paper, settings, advance) for paper in settings["papers"])}


def _answer(model: LocalModel, paper: dict[str, Any], settings: dict[str, Any], advance: Advance) -> int:
    sampling = Sampling(paper["temperature"], max_new_tokens=settings["max_new_tokens"], seed=paper["seed"])
    asked = list(_requests(Path(paper["questions"])))
    replies = {}
    for request, reply in model.answer(asked, sampling):
        replies[request.key] = reply
        advance(1, None)
    lines = []
    for request in asked:
        reply, own = replies[request.key], getattr(request, "parameters", {})
        prompt = model.renderer.prompt_ids(request.messages, own.get("tools"))
        line = {"key": request.key, "prompt": prompt, "answer": reply.token_ids or []}
        lines.append(line | {"text": reply.text, "finish": reply.finish})
    write_lines(Path(paper["out"]), lines)
    return len(lines)


def score(job: str, advance: Advance) -> dict[str, int]:
    """Have the teacher tell what it thinks of each token that a student wrote, into a book.

    Args:
        job: JSON: `recipe`, `base` (the folder that its paths are relative to), `written` (a file of `write`), `book`.
        advance: told each row.
    """
    settings = json.loads(job)
    recipe, base = Recipe.model_validate(settings["recipe"]), Path(settings["base"])
    tokenizer = student_source(recipe, base)
    renderer = Renderer.load(tokenizer, trust_remote_code=recipe.student.trust_remote_code)
    sizes = {"batch_size": recipe.teach.batch_size, "concurrency": recipe.teach.concurrency}
    teacher = WhenAsked(recipe.teacher.model, lambda: open_teacher(recipe.teacher, base, tokenizer, **sizes))
    rows = written_rows(Path(settings["written"]), recipe.distil.max_length)
    book = capture_rows(Path(settings["book"]), recipe, rows, teacher, renderer, _Told(advance))
    return {"signals": book.signals}


def written_rows(file: Path, longest: int) -> Iterator[Rendered]:
    """What a student wrote as rows whose answers are learned, token by token as they were drawn.

    Args:
        file: of `write`.
        longest: longer rows are left out.
    """
    for line in read_lines(file):
        prompt, answer = line["prompt"], line["answer"]
        if answer and len(prompt) + len(answer) <= longest:
            yield Rendered(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def _requests(file: Path) -> Iterator[Request]:
    for line in read_lines(file):
        own = {"tools": line["tools"]} if line.get("tools") else None
        if own:
            yield ChatRequest(line["key"], line["messages"], parameters=own)
        else:
            yield Request(line["key"], line["messages"])


class _Told(Progress):
    """Passes every meter's steps on."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        """As `Progress.meter`."""
        yield _Passing(self._advance)


class _Passing(Meter):
    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """As `Meter.advance`."""
        self._advance(amount, note)
