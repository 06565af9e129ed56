"""A model answers files of questions in a process of its own, and what it wrote is read as rows to be learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stillroom.contracts.child import Advance, run_child
from stillroom.contracts.files import read_lines, write_lines
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Request, Sampling
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Rendered


def write_apart(
    model: Path, papers: Sequence[dict[str, Any]], recipe: Recipe, *, label: str, advance: Advance
) -> None:
    """Have the student in a folder answer files of questions in a process of its own; what it took is free again then.

    Args:
        model: the folder.
        papers: as in the job of `write`.
        recipe: how long answers may be, and how many are written at once.
        label: what is being done, for messages.
        advance: told each answer.
    """
    job = {
        "model": str(model),
        "papers": list(papers),
        "max_new_tokens": recipe.teach.max_new_tokens,
        "batch_size": recipe.teach.batch_size,
        "trust_remote_code": recipe.student.trust_remote_code,
    }
    relief = "lower teach.batch_size"
    run_child(f"{__name__}:write", json.dumps(job), label=label, advance=advance, relief=relief)


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
