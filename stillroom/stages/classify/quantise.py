"""The student becomes ONNX files, each checked against the Hugging Face student."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from itertools import islice
from typing import Any

from stillroom.contracts.errors import ParityError
from stillroom.contracts.files import read_json, read_lines, write_json
from stillroom.models.classes import question_text
from stillroom.onnx import check_parity, export, round_weights
from stillroom.stages.context import StageContext

_TEXTS = 256


def run(context: StageContext) -> dict[str, Any]:
    """Write quantise/student-KIND/ for F32 and every kind of the recipe; none where the recipe names none.

    Raises:
        ParityError: the whole file's log-probabilities or tokens differ from the student's.
        MissingExtra: the libraries that write ONNX are not installed.
    """
    student, record = context.run.student, context.folder / "files.json"
    lines = read_lines(context.run.need("filter") / "lessons.jsonl")
    texts = [question_text(line["messages"]) for line in islice(lines, _TEXTS)]
    wanted = context.recipe.files
    kinds = list(dict.fromkeys(["F32", *wanted])) if wanted else []
    files: dict[str, Any] = read_json(record) if record.is_file() else {}
    with context.progress.meter("writing and checking", len(kinds), "files") as meter:
        for kind in kinds:
            out = context.folder / f"student-{kind}"
            if kind not in files or not (out / "config.json").is_file():
                made = (
                    export(student, out, max_length=context.recipe.distil.max_length)
                    if kind == "F32"
                    else round_weights(context.folder / "student-F32", out)
                )
                try:
                    parity = check_parity(student, out, texts, exact=kind == "F32")
                except ParityError:
                    shutil.rmtree(out)
                    raise
                files[kind] = {**asdict(made), "parity": asdict(parity)}
                write_json(record, files)
            meter.advance(1, note=kind)
    return {"files": files}
