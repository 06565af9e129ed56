"""Which trained models of a stage are whole, and writing one so that it is whole or absent."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.contracts.files import storage, write_json
from stillroom.ranks import once

_KEPT = ("metrics.jsonl", "training.json")
"""What a training leaves beside its model, in the folder of a baseline."""


class Keeping:
    """Each model has a mark of all that it depends on; one whose mark still holds is not trained again.

    Args:
        folder: the stage's, with trained.json and checkpoints/.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "trained.json"
        self._marks: dict[str, str] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    def holds(self, name: str, mark: str, model: Path) -> bool:
        """Whether the model in this folder is whole and depends on just this."""
        return self._marks.get(name) == mark and (model / "config.json").is_file()

    def remember(self, name: str, mark: str) -> None:
        """A model is whole: what it depends on goes into trained.json."""
        self._marks[name] = mark
        write_json(self._file, self._marks)

    def train(
        self, name: str, mark: str, model: Path, counts: Path, work: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        """Train a model unless its mark holds; returns its counts.

        Args:
            name: the model's.
            mark: all that it depends on.
            model: the folder that `work` leaves it in.
            counts: the file that its counts are kept in.
            work: trains it, with its checkpoints in the folder that it is given, and returns its counts.
        """
        checkpoints = self._folder / "checkpoints" / name

        def begin() -> dict[str, Any] | None:
            if self.holds(name, mark, model):
                return json.loads(counts.read_text())
            stamp = checkpoints / "mark"
            if not (stamp.is_file() and stamp.read_text() == mark):
                shutil.rmtree(checkpoints, ignore_errors=True)
                checkpoints.mkdir(parents=True)
                stamp.write_text(mark)
            return None

        def end() -> None:
            write_json(counts, found)
            self.remember(name, mark)
            shutil.rmtree(checkpoints)

        if (kept := once(begin)) is not None:
            return kept
        found = work(checkpoints)
        once(end)
        gc.collect()
        return found


def write_model(folder: Path, write: Callable[[Path], object]) -> None:
    """Have a model folder written under a temporary name and renamed, so that it is whole or absent; by one rank of several.

    Args:
        folder: where the model is to be; what a training leaves beside it stays.
        write: writes the model's files into the empty folder that it is given.

    Raises:
        StorageFault: the disk is full.
    """
    scratch = folder.with_name(f".{folder.name}.partial")

    def work() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write(scratch)
        for item in folder.glob("*") if folder.is_dir() else ():
            if item.name not in _KEPT:
                item.unlink() if item.is_file() else shutil.rmtree(item)
        folder.mkdir(parents=True, exist_ok=True)
        # config.json last: without it no program takes the folder for a model.
        for item in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
            item.replace(folder / item.name)
        scratch.rmdir()

    with storage(folder):
        once(work)
