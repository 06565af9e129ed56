"""Models at work: behind an API, alone or in a cascade, and side by side in the browser."""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stillroom.contracts.errors import ModelError, UserError

if TYPE_CHECKING:
    from stillroom.contracts.recipe import Teacher
    from stillroom.contracts.runfolder import Run
    from stillroom.serving import Backend, Cascading, Preset

verbs = typer.Typer()
_PRESETS = 200


_Context = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Context length of a conversation, in tokens. Empty: the run's export.context."),
]
_Keys = Annotated[
    str,
    typer.Option(help="Variable with the key that clients must send, if any; several: commas between them."),
]
_Host = Annotated[str, typer.Option(help="Address to listen on.")]
_Port = Annotated[int, typer.Option(help="Port to listen on.")]


@verbs.command(
    epilog="Examples: stillroom serve runs/tickets; stillroom serve model.gguf --port 8081; "
    "stillroom serve runs/tickets --most-a-day 1000 --keep-escalated"
)
def serve(
    path: Annotated[Path, typer.Argument(help="A run folder or a .gguf file.")],
    host: _Host = "127.0.0.1",
    port: _Port = 8080,
    context: _Context = None,
    parallel: Annotated[int, typer.Option(help="Conversations at a time; more wait.", min=1)] = 4,
    most_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens of an answer; requests for more are refused.", min=1),
    ] = None,
    most_requests: Annotated[
        int,
        typer.Option(help="Requests at a time, those that wait included; more are refused (429).", min=1),
    ] = 1024,
    cascade: Annotated[
        bool, typer.Option(help="Of a run with `route`, the cascade; without it the student alone.")
    ] = True,
    most_a_day: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Questions that the cascade may send on in a day (UTC).", min=0),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(help="Seconds that the model behind may take before the student stands in.", min=0.1),
    ] = 60.0,
    check: Annotated[
        float,
        typer.Option(
            help="Share of the kept answers for which the model behind is asked all the same.", min=0, max=1
        ),
    ] = 0.0,
    keep_escalated: Annotated[
        bool,
        typer.Option(
            "--keep-escalated", help="Keep what is sent on in route/escalated.jsonl, for the next round."
        ),
    ] = False,
    api_key_env: _Keys = "STILLROOM_API_KEY",
) -> None:
    """Serve the student with an OpenAI-compatible API: chat completions, completions, models; in its cascade, if any."""
    from stillroom.contracts.runfolder import Run
    from stillroom.serving import serve as serve_file

    run = Run.open(path) if path.is_dir() else None
    keep = path / "route" / "escalated.jsonl" if keep_escalated else None
    behind = None
    if run and cascade and run.recipe.route and run.manifest("route"):
        behind = partial(_cascade, run, most_a_day=most_a_day, patience=patience, check=check, keep=keep)
    serve_file(
        path,
        host=host,
        port=port,
        context=context,
        parallel=parallel,
        most_tokens=most_tokens,
        most_requests=most_requests,
        api_keys=keys.split(",") if (keys := os.environ.get(api_key_env)) else (),
        cascade=behind,
        presets=presets_of(run) if run else (),
        announce=print,
    )


def _cascade(
    run: Run, student: Backend, *, most_a_day: int | None, patience: float, check: float, keep: Path | None
) -> Cascading:
    """The run's cascade, with the model behind it ready to be asked."""
    from stillroom.checks import strip_reasoning
    from stillroom.contracts.records import Reply
    from stillroom.evaluation.scoring import agrees
    from stillroom.evaluation.tasks import Item, has_form
    from stillroom.serving import Cascade, Cascading, Escalations

    recipe, spec = run.recipe, run.recipe.route
    assert spec is not None
    score = spec.score or recipe.written_score
    assert score is not None

    def agree(own: str, other: str) -> bool:
        return agrees(Item([], ""), Reply(own, "stop"), strip_reasoning(other), score)

    rule = Cascade.load(run.folder("route") / "cascade.json")
    for sentence in rule.promise.sentences:
        print(sentence)
    return Cascading(
        student,
        as_backend(run, recipe.teacher if spec.escalate_to == "teacher" else spec.escalate_to),
        rule,
        valid=lambda text: has_form(strip_reasoning(text), score),
        decide_on=spec.decide_on,
        system=recipe.teach.system,
        timeout=patience,
        most_a_day=most_a_day,
        check_share=check,
        agree=agree,
        escalations=Escalations(keep, rule.deciles, rule.policy.max_error, print),
    )


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
    host: _Host = "127.0.0.1",
    port: _Port = 8080,
    context: _Context = None,
    api_key_env: _Keys = "STILLROOM_API_KEY",
) -> None:
    """Ask several models at once in the browser: side by side, or blind with votes that are kept and summed up."""
    from stillroom.contracts.runfolder import Run
    from stillroom.serving import Backend, Comparison, Votes, serve_models

    runs = [Run.open(path) for path in paths if path.is_dir()]
    found: dict[str, Backend | Cascading] = {}
    for run in runs:
        for name, model in _models(run, teacher=teacher).items():
            found[f"{run.recipe.name}: {name}" if len(runs) > 1 else name] = model
    for path in paths:
        if not path.is_dir():
            found[path.stem] = Backend(file=_file(path))
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


def _models(run: Run, *, teacher: bool) -> dict[str, Backend]:
    """A run's teacher and the files of its student."""
    from stillroom.serving import Backend

    files = sorted(run.need("quantise").glob("student-*.gguf"), key=lambda file: -file.stat().st_size)
    if not files:
        raise UserError(
            f"{run.path} has no files to compare",
            expected="a student that writes, with `quantise` in its recipe",
            do=f"stillroom run {run.path}",
        )
    found = {file.stem: Backend(file=file) for file in files}
    return {"teacher": as_backend(run, run.recipe.teacher), **found} if teacher else found


def as_backend(run: Run, asked: Teacher) -> Backend:
    """A recipe's model as one that can be served: where it is, as its file, or as a file of float16 made of its folder.

    Raises:
        ModelError: it is not on this machine, or cannot be made a file of.
        TeacherError: its API has no usable address.
    """
    from stillroom.gguf import export_once
    from stillroom.models.endpoint import base_url
    from stillroom.models.references import resolve_model
    from stillroom.serving import Backend

    if asked.api is not None:
        key = os.environ.get(asked.api_key_env)
        return Backend(base_url(asked.api), model=asked.model, key=key, local=False)
    model = resolve_model(asked.model, run.base)
    if not isinstance(model, Path):
        raise ModelError(
            "this model is not on this machine as a folder or a file",
            got=asked.model,
            do="leave it out (--no-teacher, --no-cascade), or name a folder or an API",
        )
    if model.is_file():
        return Backend(file=model)
    folder = run.path / "compare"
    folder.mkdir(exist_ok=True)
    print(f"{asked.model} as a file of float16: written, unless it is there")
    return Backend(file=export_once(model, folder / "teacher-F16.gguf", "F16", overwrite=True))


def _file(path: Path) -> Path:
    if not path.is_file() or path.suffix != ".gguf":
        raise ModelError(
            f"{path} is neither a run nor a .gguf file", do="convert a folder first: stillroom export FOLDER"
        )
    return path
