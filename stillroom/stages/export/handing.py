"""Files into the folder that is handed over, and the commands that go with them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from stillroom.contracts.errors import RunError
from stillroom.contracts.files import storage, write_atomically
from stillroom.contracts.recipe import Recipe
from stillroom.gguf.placing import layers_that_fit
from stillroom.stages.context import StageContext

BLOCK = 8 << 20
"""Bytes that are copied at a time."""


def serve_command(recipe: Recipe, model: Path, *more: str) -> str:
    """The line that starts llama.cpp's server on a model file beside it; further words may follow in a terminal."""
    words = ["llama-server", "-m", model.name, "-c", str(recipe.export.context), "--jinja"]
    if recipe.export.vram is not None:
        fitting = layers_that_fit(model, int(recipe.export.vram * 1e9), context=recipe.export.context)
        words += ["-ngl", str(fitting)]
    line = " ".join(shlex.quote(word) for word in [*words, *more])
    return f'exec {line} --host 127.0.0.1 --port "${{PORT:-8080}}" "$@"'


def bring(context: StageContext, source: Path) -> Path:
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
        while block := old.read(BLOCK):
            new.write(block)
            meter.advance(len(block))
        new.flush()
        os.fsync(new.fileno())


def write(path: Path, text: str) -> Path:
    """A text file, whole or not at all."""
    write_atomically(path, text)
    return path


def script(path: Path, body: str) -> Path:
    """An executable shell script that works in its own folder."""
    write(path, f'#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n{body}\n')
    path.chmod(0o755)
    return path
