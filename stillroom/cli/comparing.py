"""Models side by side in the browser: which ones a run has, and what they are asked."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stillroom.contracts.errors import ModelError, UserError

if TYPE_CHECKING:
    from stillroom.contracts.runfolder import Run
    from stillroom.serving import Backend, Preset

verbs = typer.Typer()
_PRESETS = 200


@verbs.command(
    epilog="Examples: stillroom compare runs/tickets; stillroom compare runs/tickets other.gguf; "
    "stillroom compare a.gguf b.gguf --votes votes.jsonl"
)
def compare(
    paths: Annotated[list[Path], typer.Argument(help="Run folders and .gguf files.")],
    teacher: Annotated[bool, typer.Option(help="Of a run, the teacher as well.")] = True,
    votes: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File of the blind votes. Empty: compare/votes.jsonl in the first run."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Context length of a conversation, in tokens. Empty: the run's export.context."),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(
            help="Variable with the key that clients must send, if any; several: commas between them."
        ),
    ] = "STILLROOM_API_KEY",
) -> None:
    """Ask several models at once in the browser: side by side, or blind with votes that are kept and summed up."""
    from stillroom.contracts.runfolder import Run
    from stillroom.serving import Comparison, Votes, serve_models

    runs = [Run.open(path) for path in paths if path.is_dir()]
    found: dict[str, Path | Backend] = {}
    for run in runs:
        for name, model in _models(run, teacher=teacher).items():
            found[f"{run.recipe.name}: {name}" if len(runs) > 1 else name] = model
    for path in paths:
        if not path.is_dir():
            found[path.stem] = _file(path)
    kept = votes or (runs[0].path / "compare" / "votes.jsonl" if runs else None)
    serve_models(
        found,
        host=host,
        port=port,
        context=context or (runs[0].recipe.export.context if runs else 4096),
        parallel=2,
        api_keys=keys.split(",") if (keys := os.environ.get(api_key_env)) else (),
        comparison=Comparison(
            title=" and ".join(run.recipe.name for run in runs) or "Models side by side",
            presets=[preset for run in runs for preset in presets_of(run)],
            system=next(filter(None, map(_system, runs)), ""),
            votes=Votes(kept) if kept else None,
        ),
        announce=print,
    )


def presets_of(run: Run) -> list[Preset]:
    """Questions that the run was evaluated on; none where it was not."""
    from stillroom.serving import Preset

    file = run.folder("evaluate") / "items.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        items = (item for item in map(json.loads, lines) if item.get("messages"))
        return [Preset(item["messages"], item.get("reference")) for item in islice(items, _PRESETS)]


def _system(run: Run) -> str | None:
    return run.recipe.export.system or run.recipe.teach.system


def _models(run: Run, *, teacher: bool) -> dict[str, Path | Backend]:
    """A run's teacher and the files of its student."""
    files = sorted(run.need("quantise").glob("student-*.gguf"), key=lambda file: -file.stat().st_size)
    if not files:
        raise UserError(
            f"{run.path} has no files to compare",
            expected="a student that writes, with `quantise` in its recipe",
            do=f"stillroom run {run.path}",
        )
    found: dict[str, Path | Backend] = {file.stem: file for file in files}
    return {"teacher": _teacher(run), **found} if teacher else found


def _teacher(run: Run) -> Path | Backend:
    """The teacher where it is, or as a file of float16."""
    from stillroom.gguf import export_once
    from stillroom.models.endpoint import base_url
    from stillroom.models.references import resolve_model
    from stillroom.serving import Backend

    asked = run.recipe.teacher
    if asked.api is not None:
        key = os.environ.get(asked.api_key_env)
        return Backend(base_url(asked.api), model=asked.model, key=key, local=False)
    model = resolve_model(asked.model, run.base)
    if not isinstance(model, Path):
        raise ModelError(
            "this teacher is not on this machine as a folder or a file",
            got=asked.model,
            do="leave it out: --no-teacher",
        )
    if model.is_file():
        return model
    folder = run.path / "compare"
    folder.mkdir(exist_ok=True)
    print("the teacher as a file of float16: written, unless it is there")
    return export_once(model, folder / "teacher-F16.gguf", "F16", overwrite=True)


def _file(path: Path) -> Path:
    if not path.is_file() or path.suffix != ".gguf":
        raise ModelError(
            f"{path} is neither a run nor a .gguf file", do="convert a folder first: stillroom export FOLDER"
        )
    return path
