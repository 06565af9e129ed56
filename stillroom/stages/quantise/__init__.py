"""The student becomes GGUF files, each checked against the Hugging Face student."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import ParityError
from stillroom.contracts.files import read_lines, write_json
from stillroom.gguf import check_parity, export, stored_blocks
from stillroom.stages.context import StageContext
from stillroom.stages.quantise.aware import AwareTraining, Trained

_TEXTS = 16


def run(context: StageContext) -> dict[str, Any]:
    """Write quantise/student-KIND.gguf for F16 and every kind of the recipe, student-KIND-aware.gguf where one is to learn.

    A file that disagrees with the student is not left in place.

    Raises:
        ModelError: the student cannot be converted, or went astray while it learned.
        ParityError: an unquantised file's log-probabilities, tokens or template differ from the student's.
    """
    student = context.run.student
    texts = _texts(context)
    trained = {item.name: AwareTraining(context, item).run() for item in context.recipe.aware_files}
    names = list(dict.fromkeys(["F16", *context.recipe.files]))
    record = context.folder / "files.json"
    files: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    with context.progress.meter("writing and checking", len(names), "files") as meter:
        for name in names:
            out = context.folder / f"student-{name}.gguf"
            if name not in files or not out.is_file():
                files[name] = _write(student, out, name, texts, trained.get(name))
                write_json(record, files)
            meter.advance(1, note=name)
    return {"files": files}


def _write(student: Path, out: Path, name: str, texts: list[str], trained: Trained | None) -> dict[str, Any]:
    """Write one file and measure how far it is from the student."""
    if trained is None:
        made = export(student, out, name, overwrite=True)
    else:
        made = export(trained.folder, out, trained.kind, stored=stored_blocks(trained.folder), overwrite=True)
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
        **({"training": trained.counts} if trained else {}),
    }


def _texts(context: StageContext) -> list[str]:
    """Texts of the job itself for the comparison: what the student will really read and write."""
    texts = []
    for line in read_lines(context.run.need("filter") / "lessons.jsonl"):
        texts.append("\n".join(message["content"] for message in line["messages"]))
        if len(texts) == _TEXTS:
            break
    return texts
