"""What `stillroom init` makes: a job that runs as it is, to be changed into one's own."""

from __future__ import annotations

import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from stillroom.contracts.errors import UserError
from stillroom.contracts.files import storage
from stillroom.contracts.loading import load_recipe
from stillroom.lessons.tickets import write_job


def start_job(folder: Path, *, messages: int, labelled: int, evaluation: int, seed: int) -> None:
    """Make a folder with recipe.yaml and data/, whole or not at all.

    Raises:
        UserError: the folder exists and is not empty.
        RecipeError: its name cannot be a run's name.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists", expected="a new folder", do=f"choose another name, or remove {folder}"
        )
    template = (files("stillroom") / "embedded" / "recipe.yaml").read_text(encoding="utf-8")
    with storage(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (scratch / "recipe.yaml").write_text(template.replace("NAME", folder.name), encoding="utf-8")
            load_recipe(scratch / "recipe.yaml")
            write_job(
                scratch / "data", unlabelled=messages, labelled=labelled, evaluation=evaluation, seed=seed
            )
            scratch.chmod(0o755)
            scratch.replace(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
