"""What an owner takes home: the model file, its card, a Modelfile, commands that start it, and checksums."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path
from typing import Any

import gguf

from stillroom.contracts.errors import DataError, RunError
from stillroom.contracts.files import storage, write_atomically
from stillroom.contracts.progress import Meter
from stillroom.gguf.modelfile import write_modelfile
from stillroom.report.cards import model_card
from stillroom.stages.context import StageContext

_BLOCK = 8 << 20


def run(context: StageContext) -> dict[str, Any]:
    """Write export/: the first quantised file, README.md, checksums.txt; of one that writes Modelfile and run-*.sh too.

    Every file appears whole or not at all.

    Raises:
        RunError: the quantise stage is not whole.
        DataError: results.json is not readable.
    """
    folder = context.folder
    files = _classifier(context) if context.recipe.classify else _writer(context)
    card = model_card(context.run, files[:1], ollama=folder / "Modelfile" in files)
    files.append(_write(folder / "README.md", card))
    sizes = sum(file.stat().st_size for file in files)
    with context.progress.meter("checksums", sizes, "bytes") as meter:
        lines = [f"{_sha256(file, meter)}  {file.name}\n" for file in files]
    files.append(_write(folder / "checksums.txt", "".join(lines)))
    return {"files": [file.name for file in files], "bytes": sum(file.stat().st_size for file in files)}


def _writer(context: StageContext) -> list[Path]:
    """The first GGUF file of the recipe's list, and what starts it."""
    folder, name = context.folder, context.recipe.name
    kind = context.recipe.handed_over or "F16"
    model = _bring(context, context.run.need("quantise") / f"student-{kind}.gguf")
    files = [model]
    modelfile = _modelfile(context, model)
    if modelfile is not None:
        files.append(_write(folder / "Modelfile", modelfile))
        create = f"ollama create {name} -f Modelfile"
        files.append(_script(folder / "run-ollama.sh", f'{create}\nexec ollama run {name} "$@"'))
    serve = f"exec llama-server -m {shlex.quote(model.name)} -c {context.recipe.export.context} --jinja"
    files.append(
        _script(folder / "run-llama-server.sh", f'{serve} --host 127.0.0.1 --port "${{PORT:-8080}}" "$@"')
    )
    return files


def _classifier(context: StageContext) -> list[Path]:
    """The first ONNX file of the recipe's list with what it is read with; the Hugging Face student where there is none."""
    kind = context.recipe.handed_over
    source = context.run.need("quantise") / f"student-{kind}" if kind else context.run.student
    found = sorted(
        source.iterdir(), key=lambda path: (path.suffix not in (".onnx", ".safetensors"), path.name)
    )
    return [_bring(context, path) for path in found if path.is_file()]


def _bring(context: StageContext, source: Path) -> Path:
    """A file, linked into the folder, or copied where the disk cannot link."""
    if not source.is_file():
        raise RunError(
            f"{source} is missing",
            expected="the file that the quantise stage wrote",
            do=f"remove {source.parent / 'manifest.json'} and run again",
        )
    target = context.folder / source.name
    temporary = target.with_name(f".{target.name}.partial")
    with storage(target):
        context.folder.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            try:
                os.link(source, temporary)
            except OSError:  # another disk, or one without links
                _copy(context, source, temporary)
            temporary.replace(target)
        finally:
            # Renaming a link onto another link of the same file does nothing and leaves both.
            temporary.unlink(missing_ok=True)
    return target


def _copy(context: StageContext, source: Path, target: Path) -> None:
    size = source.stat().st_size
    with (
        context.progress.meter("copying", size, "bytes") as meter,
        source.open("rb") as old,
        target.open("wb") as new,
    ):
        while block := old.read(_BLOCK):
            new.write(block)
            meter.advance(len(block))
        new.flush()
        os.fsync(new.fileno())


def _modelfile(context: StageContext, model: Path) -> str | None:
    """The Modelfile's text; None, and a line for the reader, where its grammar cannot say what is needed."""
    field = gguf.GGUFReader(model).get_field("tokenizer.chat_template")
    recipe = context.recipe
    try:
        return write_modelfile(
            model.name,
            chat_template=None if field is None else str(field.contents()),
            num_ctx=recipe.export.context,
            system=recipe.export.system or recipe.teach.system,
            licence=None if recipe.export.license == "other" else recipe.export.license,
        )
    except DataError as error:
        context.progress.say(f"no Modelfile: {error.what} ({error.do})")
        return None


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text)
    return path


def _script(path: Path, body: str) -> Path:
    """An executable shell script that works in its own folder."""
    _write(path, f'#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n{body}\n')
    path.chmod(0o755)
    return path


def _sha256(path: Path, meter: Meter) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
            meter.advance(len(block))
    return hasher.hexdigest()
