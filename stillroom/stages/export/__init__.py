"""What an owner takes home: the model file, its card, a Modelfile, commands that start it, and checksums."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import storage
from stillroom.contracts.progress import Meter
from stillroom.gguf.modelfile import write_modelfile
from stillroom.gguf.words import read_words
from stillroom.report.cards import model_card
from stillroom.stages.context import StageContext
from stillroom.stages.export.drafting import draft_for_teacher
from stillroom.stages.export.handing import BLOCK, bring, script, serve_command, write


def run(context: StageContext) -> dict[str, Any]:
    """Write export/: the first quantised file, README.md, checksums.txt; of one that writes Modelfile and run-*.sh too.

    Every file appears whole or not at all.

    Raises:
        RunError: the quantise stage is not whole.
        DataError: results.json is not readable.
        ModelError: the teacher cannot be given a draft.
    """
    folder, recipe = context.folder, context.recipe
    files = _classifier(context) if recipe.classify else _writer(context)
    drafted = draft_for_teacher(context, files[0]) if recipe.export.draft else None
    if drafted:
        files += drafted.files
    card = model_card(
        context.run,
        files[:1],
        ollama=folder / "Modelfile" in files,
        draft=drafted.figures if drafted else None,
    )
    files.append(write(folder / "README.md", card))
    sizes = sum(file.stat().st_size for file in files)
    with context.progress.meter("checksums", sizes, "bytes") as meter:
        lines = [f"{_sha256(file, meter)}  {file.name}\n" for file in files]
    files.append(write(folder / "checksums.txt", "".join(lines)))
    if recipe.export.bundle:
        files.append(_bundle(context, files))
    counts = {"files": [file.name for file in files], "bytes": sum(file.stat().st_size for file in files)}
    return {**counts, "draft": drafted.figures} if drafted else counts


def _writer(context: StageContext) -> list[Path]:
    """The first GGUF file of the recipe's list, and what starts it."""
    folder, recipe = context.folder, context.recipe
    kind = recipe.handed_over or "F16"
    model = bring(context, context.run.need("quantise") / f"student-{kind}.gguf")
    files = [model]
    modelfile = _modelfile(context, model)
    if modelfile is not None:
        files.append(write(folder / "Modelfile", modelfile))
        create = f"ollama create {recipe.name} -f Modelfile"
        files.append(script(folder / "run-ollama.sh", f'{create}\nexec ollama run {recipe.name} "$@"'))
    files.append(script(folder / "run-llama-server.sh", serve_command(recipe, model)))
    return files


def _bundle(context: StageContext, files: list[Path]) -> Path:
    """One zip file of them, not compressed: weights do not shrink."""
    target = context.folder / f"{context.recipe.name}.zip"
    temporary = target.with_name(f".{target.name}.partial")
    size = sum(file.stat().st_size for file in files)
    try:
        with (
            storage(target),
            context.progress.meter("bundling", size, "bytes") as meter,
            zipfile.ZipFile(temporary, "w") as bundle,
        ):
            for file in files:
                entry = zipfile.ZipInfo.from_file(file, f"{context.recipe.name}/{file.name}")
                with file.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as written:
                    while block := source.read(BLOCK):
                        written.write(block)
                        meter.advance(len(block))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _classifier(context: StageContext) -> list[Path]:
    """The first ONNX file of the recipe's list with what it is read with; the Hugging Face student where there is none."""
    kind = context.recipe.handed_over
    source = context.run.need("quantise") / f"student-{kind}" if kind else context.run.student
    found = sorted(
        source.iterdir(), key=lambda path: (path.suffix not in (".onnx", ".safetensors"), path.name)
    )
    return [bring(context, path) for path in found if path.is_file()]


def _modelfile(context: StageContext, model: Path) -> str | None:
    """The Modelfile's text; None, and a line for the reader, where its grammar cannot say what is needed."""
    recipe, words = context.recipe, read_words(model)
    system = recipe.export.system or recipe.teach.system
    try:
        return write_modelfile(
            model.name,
            turns=words.turns(),
            stops=words.ends,
            num_ctx=recipe.export.context,
            system=system,
            licence=None if recipe.export.license == "other" else recipe.export.license,
        )
    except DataError as error:
        got = f": {error.got}" if error.got else ""
        context.progress.say(f"no Modelfile: {error.what}{got} ({error.do})")
        return None


def _sha256(path: Path, meter: Meter) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
            meter.advance(len(block))
    return hasher.hexdigest()
