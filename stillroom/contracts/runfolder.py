"""A run is a folder: where each stage writes, its manifest, and whether that still holds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stillroom.contracts.errors import RunError
from stillroom.contracts.files import digest, storage, write_atomically, write_json
from stillroom.contracts.loading import load_recipe
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import content_key

MANIFEST = "manifest.json"
STARTED = ".started"
_RESOLVED = "# as resolved; paths are relative to "


@dataclass(frozen=True)
class Manifest:
    """What a stage did; written last and atomically, so that its presence means the stage is whole."""

    stage: str
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of the stages it read."""
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    seed: int = 0
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        """The manifest in a stage's folder, or None where the stage is not whole."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            return Manifest(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it into the stage's folder."""
        write_json(folder / MANIFEST, asdict(self))


def fingerprint(settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """What a stage's result depends on, in 32 hex digits."""
    return content_key(settings, inputs)


def changes(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two settings trees, one phrase each: `distil.steps was 100, is 200`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if old == new:
        return []
    return [f"{path} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Run:
    """A run's folder and the recipe as resolved."""

    path: Path
    recipe: Recipe
    base: Path
    """The folder that paths in the recipe are relative to."""
    first: Path | None = None
    """The folder of the first link of the chain that this run ends."""

    @staticmethod
    def is_run(path: Path) -> bool:
        """Whether a folder is a run's, not a job's: its recipe says what its paths are relative to."""
        try:
            with (path / "recipe.yaml").open(encoding="utf-8") as file:
                return file.readline().startswith(_RESOLVED)
        except OSError:
            return False

    @staticmethod
    def open(path: Path, overrides: Sequence[str] = ()) -> Run:
        """An existing run, with `--set` overrides on its recipe.

        Raises:
            RunError: the folder is not a run.
        """
        if not Run.is_run(path):
            raise RunError(
                f"{path} is not a run folder",
                expected="a folder that `stillroom run` made, such as runs/tickets",
                do="run a recipe first: stillroom run RECIPE",
            )
        recipe_file = path / "recipe.yaml"
        head = recipe_file.read_text(encoding="utf-8").partition("\n")[0]
        return Run(path, load_recipe(recipe_file, overrides), (path / head.removeprefix(_RESOLVED)).resolve())

    def save_recipe(self) -> None:
        """Write recipe.yaml, as resolved, with the folder that its paths are relative to."""
        tree = self.recipe.model_dump(mode="json", exclude_unset=True)
        head = f"{_RESOLVED}{os.path.relpath(self.base, self.path.resolve())}\n"
        with storage(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.path / "recipe.yaml", head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        )

    def folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.path / stage

    @property
    def student(self) -> Path:
        """The folder of the student that is handed over: aligned, where the recipe asks for that."""
        return self.folder("align" if self.recipe.align else "distil") / "student"

    def locate(self, name: str) -> Path:
        """A path of the recipe as a path on this machine."""
        return (self.base / Path(name).expanduser()).resolve()

    def content(self, name: str) -> str | None:
        """A digest of the file that the recipe names so; a data set of a hub is known by its name alone."""
        return None if name.startswith("hub:") else digest(self.locate(name))

    def manifest(self, stage: str) -> Manifest | None:
        """A stage's manifest, or None."""
        return Manifest.read(self.folder(stage))

    def need(self, stage: str) -> Path:
        """The folder of a stage that must be whole.

        Raises:
            RunError: the stage has not finished.
        """
        if self.manifest(stage) is None:
            raise RunError(f"{self.path} has no finished {stage} stage", do=f"stillroom run {self.path}")
        return self.folder(stage)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works in a run folder.

        Raises:
            RunError: another process does.
        """
        with storage(self.path), (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is working in {self.path}", do="wait for it to end"
                ) from None
            yield

    def begin(self, stage: str, mark: str, keeps: tuple[str, ...] = ()) -> bool:
        """Prepare a stage's folder for work with this fingerprint; True where a killed attempt goes on.

        What an attempt with other settings left is removed, except the names in `keeps`, whose lines are
        keyed by content and stay valid.
        """
        folder = self.folder(stage)
        started = folder / STARTED
        resumed = started.is_file() and started.read_text() == mark
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
            if not resumed:
                # Before the rest, so that a clearing that is killed is not taken for the old attempt.
                started.unlink(missing_ok=True)
                for item in folder.iterdir():
                    if item.name not in keeps:
                        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        write_atomically(started, mark)
        return resumed
