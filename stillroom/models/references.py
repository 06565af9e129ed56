"""From a model's name in a recipe to a folder, a file or a hub id. No torch here: planning and the CLI use it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from stillroom.contracts.errors import ModelError
from stillroom.contracts.files import digest

EMBEDDED = "embedded:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def resolve_model(name: str, base: Path) -> Path | str:
    """Where a model is.

    Args:
        name: `embedded:NAME`, a Hugging Face folder, a .gguf file, or a hub id.
        base: the folder that relative paths start from, usually the recipe's.

    Returns:
        The folder or file, or the hub id unchanged.

    Raises:
        ModelError: it looks like a path and nothing is there, or what is there is not a model.
    """
    found = _locate(name, base)
    if isinstance(found, Path):
        if found.is_file() and found.suffix != ".gguf":
            raise ModelError(
                f"{name} is not a model",
                got=f"the file {found}",
                expected="a Hugging Face folder, a .gguf file or a hub id",
                do="give the folder that the file is in, or convert the model to GGUF",
            )
        if found.is_dir() and not (found / "config.json").is_file():
            raise ModelError(
                f"{name} is not a model folder",
                got=_listing(found),
                expected="a Hugging Face folder with config.json, tokenizer.json and *.safetensors",
                do="check the path, or give a hub id or a .gguf file",
            )
    return found


def resolve_tokenizer(name: str, base: Path) -> Path | str:
    """Where a tokenizer is: like `resolve_model`, but the folder needs no weights.

    Raises:
        ModelError: it looks like a path and no tokenizer is there.
    """
    found = _locate(name, base)
    if isinstance(found, Path) and not any((found / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{name} has no tokenizer",
            got=_listing(found) if found.is_dir() else f"the file {found}",
            expected="a folder with tokenizer.json",
            do="give the Hugging Face folder or hub id that the model was made from",
        )
    return found


def digest_of(name: str, base: Path) -> str:
    """What a fingerprint takes for a model: the digest of local files, the id itself for a hub model.

    Raises:
        ModelError: as `resolve_model`.
    """
    found = resolve_model(name, base)
    return digest(found) if isinstance(found, Path) else found


def _locate(name: str, base: Path) -> Path | str:
    if name.startswith(EMBEDDED):
        return _embedded(name.removeprefix(EMBEDDED))
    path = base / Path(name).expanduser()
    if path.exists():
        return path.resolve()
    if _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return name
    raise ModelError(
        f"there is no model at {name}",
        got=f"nothing at {path}",
        expected="a Hugging Face folder, a .gguf file, a hub id (owner/name) or embedded:NAME",
        do=f"check the path; it is relative to {base}",
    )


def _embedded(name: str) -> Path:
    shelf = Path(str(files("stillroom"))) / "embedded"
    folder = shelf / name
    if not re.fullmatch(r"[\w-]+", name) or not (folder / "config.json").is_file():
        known = sorted(item.name for item in shelf.iterdir() if item.is_dir()) if shelf.is_dir() else []
        raise ModelError(
            f"there is no embedded model {name!r}",
            got=f"{EMBEDDED}{name}",
            expected=" or ".join(EMBEDDED + item for item in known) or "an installation with embedded models",
            do="use one of these names, or a folder, a .gguf file or a hub id",
        )
    return folder


def _listing(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"{folder} with {shown}" if names else f"{folder}, which is empty"
