"""What can be done with a model: measure it, write it as another kind of file, serve it."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from stillroom.cli.results import show_results
from stillroom.contracts.errors import StillroomError, UserError

verbs = typer.Typer()


class Score(enum.Enum):
    """How `stillroom eval` judges an answer."""

    json = "json"
    exact = "exact"
    number = "number"
    maths = "maths"
    choice = "choice"
    tools = "tools"
    code = "code"
    quotes = "quotes"


@verbs.command(
    name="eval", epilog="Examples: stillroom eval runs/tickets; stillroom eval model.gguf --file eval.jsonl"
)
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder or a .gguf file.")],
    file: Annotated[Optional[Path], typer.Option(help="Items to measure a model on.")] = None,  # noqa: UP045
    score: Annotated[Score, typer.Option(help="How answers are held against the right ones.")] = Score.json,
    tokenizer: Annotated[Optional[str], typer.Option(help="Tokenizer folder of a .gguf file.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(help="Use at most this many items.")] = None,  # noqa: UP045
) -> None:
    """Measure a run's models again, or any model on a file of questions with right answers."""
    from stillroom.contracts.runfolder import Run
    from stillroom.display import open_progress

    if Run.is_run(path):
        from stillroom.pipeline import run_pipeline

        found = Run.open(path)
        found.need("quantise")
        with found.locked():
            run_pipeline(found, open_progress(), until="evaluate", again="evaluate")
        show_results(found)
        return
    if file is None:
        raise UserError(
            "a model needs items to be measured on", do="--file eval.jsonl, lines with messages and reference"
        )
    from stillroom.contracts.recipe import Task
    from stillroom.evaluation import ModelSpec, evaluate
    from stillroom.stages.evaluate import read_file

    spec = ModelSpec(path.name, "gguf" if path.suffix == ".gguf" else "local", str(path), tokenizer=tokenizer)
    task = read_file(Task(file=str(file), score=score.value, limit=limit), file)
    for row in evaluate([spec], [task], progress=open_progress()).rows:
        if row.at is None:
            interval = (
                f"  [{row.low:.4f}, {row.high:.4f}]" if row.low is not None and row.high is not None else ""
            )
            print(f"{row.metric:<24} {row.value:,.4f}{interval}")


@verbs.command(
    epilog="Examples: stillroom export runs/tickets --kind Q8_0 --out tickets-Q8_0.gguf; "
    "stillroom export model --kind Q3_K_M --importance lessons.jsonl"
)
def export(
    path: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    kind: Annotated[
        str,
        typer.Option(
            help="F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_0, Q3_K_M or Q2_K: from large to small."
        ),
    ] = "Q4_K_M",
    out: Annotated[Optional[Path], typer.Option(help="The file to write.")] = None,  # noqa: UP045
    importance: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Lessons (.jsonl) that the model reads, so that the weights it uses most are rounded with most care; or an "
            "importance matrix of llama.cpp (.gguf)."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how large the file would be; write nothing.")
    ] = False,
) -> None:
    """Write a model as a GGUF file of another kind, checked against the Hugging Face folder."""
    from stillroom.contracts.runfolder import Run
    from stillroom.gguf import check_parity, export, importance_from, importance_source, predict_size

    source = path
    if Run.is_run(path):
        run = Run.open(path)
        source = run.need(run.student.parent.name) / "student"
    target = out or Path(f"{path.resolve().name}-{kind}.gguf")
    if dry_run:
        size = predict_size(source, kind, weighed_by=importance_source(importance) if importance else None)
        print(f"{target}  {size:,} bytes; nothing written")
        return
    matrix = importance_from(source, importance) if importance else None
    made = export(source, target, kind, importance=matrix)
    try:
        parity = check_parity(source, target)
    except StillroomError:
        target.unlink(missing_ok=True)
        raise
    print(f"{target}  {made.bytes:,} bytes; mean KL to the source {parity.mean_kl:.2e} nats a token")


@verbs.command(epilog="Examples: stillroom serve runs/tickets; stillroom serve model.gguf --port 8081")
def serve(
    path: Annotated[Path, typer.Argument(help="A run folder or a .gguf file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Context length of a conversation, in tokens. Empty: the run's export.context."),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Conversations at a time.")] = 4,
    api_key_env: Annotated[
        str, typer.Option(help="Variable with the key that clients must send, if any.")
    ] = "STILLROOM_API_KEY",
) -> None:
    """Serve the student with an OpenAI-compatible API: chat completions, completions, models."""
    from stillroom.serving import serve as serve_file

    serve_file(
        path,
        host=host,
        port=port,
        context=context,
        parallel=parallel,
        api_key=os.environ.get(api_key_env) or None,
        announce=print,
    )
