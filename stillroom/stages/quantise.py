"""The student becomes GGUF files, each checked against the Hugging Face student."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import ParityError
from stillroom.contracts.files import read_lines, write_json
from stillroom.gguf import (
    ImportanceMatrix,
    check_parity,
    export,
    gather_importance,
    lessons_of,
    read_importance,
)
from stillroom.stages.context import StageContext

_TEXTS = 16


def run(context: StageContext) -> dict[str, Any]:
    """Write quantise/student-KIND.gguf for F16 and every kind of the recipe; and importance.gguf, where it is asked for.

    A file that disagrees with the student is not left in place.

    Raises:
        ParityError: an unquantised file's log-probabilities, tokens or template differ from the student's.
    """
    student = context.run.student
    texts = _texts(context)
    importance = _importance(context)
    kinds = ["F16", *(kind for kind in context.recipe.quantise if kind != "F16")]
    record = context.folder / "files.json"
    files: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    with context.progress.meter("writing and checking", len(kinds), "files") as meter:
        for kind in kinds:
            out = context.folder / f"student-{kind}.gguf"
            if kind not in files or not out.is_file():
                files[kind] = _write(student, out, kind, texts, importance)
                write_json(record, files)
            meter.advance(1, note=kind)
    return {"files": files}


def _importance(context: StageContext) -> ImportanceMatrix | None:
    """What the student's matrices are given while it reads its lessons, kept in llama.cpp's format."""
    wanted = context.recipe.importance
    if wanted is None:
        return None
    file = context.folder / "importance.gguf"
    if not file.is_file():
        lessons = context.run.need("filter") / "lessons.jsonl"
        gather_importance(
            context.run.student, lessons_of(lessons), source=lessons.name, tokens=wanted.tokens
        ).write(file)
    return read_importance(file)


def _write(
    student: Path, out: Path, kind: str, texts: list[str], importance: ImportanceMatrix | None
) -> dict[str, Any]:
    """Write one file and measure how far it is from the student."""
    made = export(student, out, kind, importance=importance, overwrite=True)
    try:
        parity = check_parity(student, out, texts=texts)
    except ParityError:
        out.unlink(missing_ok=True)
        raise
    mix = Counter(row.kind for row in made.mix)
    return {
        "bytes": made.bytes,
        "parameters": made.parameters,
        "bits a weight": round(made.bits_per_weight, 3),
        "mix": dict(mix.most_common()),
        "fallbacks": [f"{row.tensor}: {row.wanted} became {row.kind}" for row in made.fallbacks],
        "parity": asdict(parity),
        "notes": made.notes,
    }


def _texts(context: StageContext) -> list[str]:
    """Texts of the job itself for the comparison: what the student will really read and write."""
    texts = []
    for line in read_lines(context.run.need("filter") / "lessons.jsonl"):
        texts.append("\n".join(message["content"] for message in line["messages"]))
        if len(texts) == _TEXTS:
            break
    return texts
