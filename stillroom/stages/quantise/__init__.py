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
    ExportedFile,
    ImportanceMatrix,
    Parity,
    check_parity,
    export,
    gather_importance,
    lessons_of,
    read_importance,
    stored_blocks,
)
from stillroom.ranks import once
from stillroom.stages.context import StageContext
from stillroom.stages.quantise.aware import AwareTraining, Trained

_TEXTS = 16


def run(context: StageContext) -> dict[str, Any]:
    """Write quantise/student-KIND.gguf for F16 and every kind; importance.gguf and student-KIND-aware.gguf where asked for.

    A file that disagrees with the student is not left in place.

    Raises:
        ModelError: the student cannot be converted, or went astray while it learned.
        ParityError: an unquantised file's log-probabilities, tokens or template differ from the student's.
    """
    trained = {item.name: AwareTraining(context, item).run() for item in context.recipe.aware_files}
    return once(lambda: _write(context, trained))


def _write(context: StageContext, trained: dict[str, Trained]) -> dict[str, Any]:
    student = context.run.student
    texts, importance = _texts(context), _importance(context)
    names = list(dict.fromkeys(["F16", *context.recipe.files]))
    record = context.folder / "files.json"
    files: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    with context.progress.meter("writing and checking", len(names), "files") as meter:
        for name in names:
            out = context.folder / f"student-{name}.gguf"
            if name not in files or not out.is_file():
                made = (
                    _learned(trained[name], out)
                    if name in trained
                    else export(student, out, name, importance=importance, overwrite=True)
                )
                files[name] = _account(made, _checked(student, out, texts))
                if name in trained:
                    files[name]["training"] = trained[name].counts
                write_json(record, files)
            meter.advance(1, note=name)
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


def _learned(trained: Trained, out: Path) -> ExportedFile:
    """Write the file whose weights have learned to be rounded: the very blocks that were trained."""
    return export(trained.folder, out, trained.kind, stored=stored_blocks(trained.folder), overwrite=True)


def _checked(student: Path, out: Path, texts: list[str]) -> Parity:
    """How far a file is from the student; one that must not be is not left in place."""
    try:
        return check_parity(student, out, texts=texts)
    except ParityError:
        out.unlink(missing_ok=True)
        raise


def _account(made: ExportedFile, parity: Parity) -> dict[str, Any]:
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
