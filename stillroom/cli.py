"""The command line. Each command imports its rooms only after parsing, so that --help is quick."""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stillroom import __version__
from stillroom.contracts.errors import Fault, StillroomError, UserError

if TYPE_CHECKING:
    from stillroom.contracts.runfolder import Run


class Score(enum.Enum):
    """How `stillroom eval` judges an answer."""

    json = "json"
    exact = "exact"


app = typer.Typer(
    name="stillroom",
    help="Distil a big language model into a small one that runs at home, with a report that proves what was kept.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with: stillroom init tickets, then stillroom run tickets",
)

Sets = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at run time
    typer.Option("--set", help="Override a setting: --set distil.learning_rate=1e-4. May be repeated."),
]
Runs = Annotated[Path, typer.Option(help="Where run folders are.", envvar="STILLROOM_RUNS")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, a folder with recipe.yaml, or a run folder.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/tickets.")]


def main() -> None:
    """Run a command; every fault becomes a few plain lines and an exit code: 2 the user can mend it, 1 a fault."""
    try:
        app()  # usage errors, --help and Ctrl-C end inside with their own words
    except StillroomError as error:
        _leave(error)
    except Exception as error:
        if os.environ.get("STILLROOM_TRACEBACK"):
            raise
        _leave(
            Fault(
                "stillroom failed in a way that it should not",
                got=f"{type(error).__name__}: {str(error)[:500]}",
                do="run again with STILLROOM_TRACEBACK=1 to see where, and report it",
            )
        )


def _leave(error: StillroomError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _version(value: bool) -> None:
    if value:
        print(f"stillroom {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def _run_of(path: Path, sets: list[str] | None, runs: Path) -> Run:
    """The run that a recipe gets, or the run in a folder; nothing is written."""
    from stillroom.contracts.loading import load_recipe
    from stillroom.contracts.runfolder import Run

    if Run.is_run(path):
        return Run.open(path, sets or ())
    recipe = load_recipe(path, sets or ())
    return Run(runs / recipe.name, recipe, (path if path.is_dir() else path.parent).resolve())


@app.command(epilog="Example: stillroom init tickets && stillroom run tickets")
def init(
    name: Annotated[str, typer.Argument(help="The job's name; a folder of this name is made.")],
    messages: Annotated[int, typer.Option(help="Messages without answers, for the teacher.")] = 2700,
    labelled: Annotated[int, typer.Option(help="Messages with their right answers.")] = 300,
    evaluation: Annotated[int, typer.Option(help="Messages kept for the evaluation.")] = 600,
    seed: Annotated[int, typer.Option(help="Seeds the messages.")] = 0,
) -> None:
    """Make a job to start from: a recipe with comments and its data, the example of customer tickets."""
    from stillroom.lessons.starting import start_job

    folder = Path(name)
    start_job(folder, messages=messages, labelled=labelled, evaluation=evaluation, seed=seed)
    print(f"made {folder}/recipe.yaml and {folder}/data; now: stillroom run {folder}")


@app.command(epilog="Example: stillroom plan tickets --set distil.batch_size=64")
def plan(recipe: RecipePath, sets: Sets = None, runs: Runs = Path("runs")) -> None:
    """Say what a run would do and what it needs, without doing it: stages, parameters, memory, disk."""
    from stillroom.planning.plan import plan_lines

    for line in plan_lines(_run_of(recipe, sets, runs)):
        print(line)


@app.command(
    epilog="Examples: stillroom run tickets; stillroom run tickets --set baselines=[]; stillroom run tickets --dry-run"
)
def run(
    recipe: RecipePath,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    until: Annotated[Optional[str], typer.Option(help="Stop after this stage.")] = None,  # noqa: UP045
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and why, then stop.")
    ] = False,
) -> None:
    """Go the whole way: prompts, teach, filter, distil, quantise, evaluate, export, report.

    What is done is skipped, what was stopped goes on, and one line says why a stage runs.
    """
    from stillroom.display import open_progress
    from stillroom.pipeline import STAGES, check, outlook, run_pipeline

    names = [stage.name for stage in STAGES]
    if until is not None and until not in names:
        raise UserError(f"there is no stage {until}", expected=", ".join(names))
    found = _run_of(recipe, sets, runs)
    check(found)
    if dry_run:
        for item in outlook(found):
            print(
                f"{item.stage.name:<10} {'runs: ' + item.reason if item.reason else 'holds, would be skipped'}"
            )
        return
    found.save_recipe()
    with found.locked():
        run_pipeline(found, open_progress(), until=until)
    if until is None:
        _show_results(found)


def _show_results(found: Run) -> None:
    """The table at the end of a run, and where the report is."""
    from rich.console import Console

    from stillroom.report.console import results_table

    # Where no terminal says how wide it is, the table gets what it needs.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if (table := results_table(found)) is not None:
        console.print(table)
    console.print(f"report: {found.path / 'report.html'}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: stillroom status runs/tickets")
def status(path: RunPath) -> None:
    """Say which stages of a run are done, with their counts and seconds, and what would run next."""
    from stillroom.contracts.runfolder import Run
    from stillroom.display import duration
    from stillroom.pipeline import outlook

    found = Run.open(path)
    for item in outlook(found):
        manifest = found.manifest(item.stage.name)
        if manifest is None:
            print(f"{item.stage.name:<10} {item.reason}")
            continue
        counts = ", ".join(f"{v:,} {k}" for k, v in manifest.counts.items() if isinstance(v, int) and v)
        state = "done" if item.reason is None else f"out of date: {item.reason}"
        print(f"{item.stage.name:<10} {state}, {duration(manifest.seconds)}  {counts}")


@app.command(epilog="Example: stillroom report runs/tickets")
def report(path: RunPath) -> None:
    """Write the report of a run anew: runs/NAME/report.html."""
    from stillroom.contracts.runfolder import Run
    from stillroom.report.page import write_report

    found = Run.open(path)
    found.need("evaluate")
    print(write_report(found))


@app.command(
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
        _show_results(found)
        return
    if file is None:
        raise UserError(
            "a model needs items to be measured on", do="--file eval.jsonl, lines with messages and reference"
        )
    from stillroom.evaluation import ModelSpec, evaluate, load_task

    spec = ModelSpec(path.name, "gguf" if path.suffix == ".gguf" else "local", str(path), tokenizer=tokenizer)
    task = load_task(file, score.value, file.stem, limit=limit)
    for row in evaluate([spec], [task], progress=open_progress()).rows:
        if row.at is None:
            interval = (
                f"  [{row.low:.4f}, {row.high:.4f}]" if row.low is not None and row.high is not None else ""
            )
            print(f"{row.metric:<24} {row.value:,.4f}{interval}")


@app.command(epilog="Example: stillroom export runs/tickets --kind Q8_0 --out tickets-Q8_0.gguf")
def export(
    path: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    kind: Annotated[str, typer.Option(help="F32, F16, Q8_0 or Q4_K_M.")] = "Q4_K_M",
    out: Annotated[Optional[Path], typer.Option(help="The file to write.")] = None,  # noqa: UP045
) -> None:
    """Write a model as a GGUF file of another kind, checked against the Hugging Face folder."""
    from stillroom.contracts.runfolder import Run
    from stillroom.gguf import check_parity, export

    source = Run.open(path).need("distil") / "student" if Run.is_run(path) else path
    target = out or Path(f"{path.resolve().name}-{kind}.gguf")
    made = export(source, target, kind)
    try:
        parity = check_parity(source, target)
    except StillroomError:
        target.unlink(missing_ok=True)
        raise
    print(f"{target}  {made.bytes:,} bytes; mean KL to the source {parity.mean_kl:.2e} nats a token")


@app.command(epilog="Examples: stillroom serve runs/tickets; stillroom serve model.gguf --port 8081")
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


@app.command(epilog="Example: stillroom doctor")
def doctor() -> None:
    """Say what this machine has and what is missing: versions, accelerator, memory, disk, llama.cpp."""
    from stillroom.planning.machine import machine_lines

    for line in machine_lines():
        print(line)
