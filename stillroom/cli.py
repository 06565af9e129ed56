"""The command line. Each command imports its rooms only after parsing, so that --help is quick."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable
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


@app.command(
    epilog="Examples: stillroom init tickets && stillroom run tickets; "
    "stillroom init mine --task task.md --examples few.jsonl --teacher qwen2.5:72b --api http://127.0.0.1:11434/v1"
)
def init(
    name: Annotated[str, typer.Argument(help="The job's name; a folder of this name is made.")],
    task: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Your own job: a text that describes it. Goes with --examples."),
    ] = None,
    examples: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Ten to a hundred examples of it, best with right answers; JSONL, CSV or text."),
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="With --task: the big model, a hub id, folder, .gguf file or name at an API.")
    ] = "Qwen/Qwen2.5-7B-Instruct",
    api: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --task: base URL of the teacher's OpenAI-compatible API."),
    ] = None,
    student: Annotated[
        str, typer.Option(help="With --task: the small model, a hub id or folder.")
    ] = "Qwen/Qwen2.5-0.5B-Instruct",
    count: Annotated[int, typer.Option(min=1, help="With --task: questions to invent.")] = 5000,
    messages: Annotated[int, typer.Option(help="Of the example job: messages without answers.")] = 500,
    labelled: Annotated[int, typer.Option(help="Of the example job: messages with right answers.")] = 200,
    evaluation: Annotated[int, typer.Option(help="Of the example job: messages for the evaluation.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of the example job: seeds the messages.")] = 0,
) -> None:
    """Make a job to start from: yours, from a description and a few examples, or the example of customer tickets."""
    from stillroom.lessons.prompts.starting import start_from_examples, start_job

    folder = Path(name)
    if (task is None) != (examples is None):
        raise UserError(
            "init wants --task and --examples together",
            expected="a description of the job, and a few examples",
        )
    if task is not None and examples is not None:
        notes = start_from_examples(
            folder, task=task, examples=examples, teacher=teacher, api=api, student=student, count=count
        )
        print(
            "\n".join([*notes, f"made {folder}/recipe.yaml and {folder}/data; now: stillroom plan {folder}"])
        )
        return
    start_job(folder, messages=messages, labelled=labelled, evaluation=evaluation, seed=seed)
    print(f"made {folder}/recipe.yaml and {folder}/data; now: stillroom run {folder}")


@app.command(epilog="Example: stillroom plan tickets --set distil.batch_size=64")
def plan(recipe: RecipePath, sets: Sets = None, runs: Runs = Path("runs")) -> None:
    """Say what a run would do and what it needs, without doing it: stages, parameters, memory, disk."""
    from stillroom.lessons.expand.forecast import forecast, forecast_lines
    from stillroom.planning.plan import Asked, plan_lines

    run = _run_of(recipe, sets, runs)
    found = forecast(run)
    for line in plan_lines(run, Asked(found.answers, found.mean_tokens, list(forecast_lines(found, run)))):
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
    name="filter",
    epilog="Examples: stillroom filter answers.jsonl --set verify=number --out lessons.jsonl --rejected rejected.jsonl; "
    "cat answers.jsonl | stillroom filter --set keep=2 > lessons.jsonl",
)
def filter_(
    source: Annotated[str, typer.Argument(help="JSONL of answers, or - for standard input.")] = "-",
    sets: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option("--set", help="A setting of the recipe's filter section: verify=json. May be repeated."),
    ] = None,
    out: Annotated[str, typer.Option(help="File of lessons to write, or - for standard output.")] = "-",
    rejected: Annotated[Optional[Path], typer.Option(help="File of rejects with their reasons.")] = None,  # noqa: UP045
    preferences: Annotated[Optional[Path], typer.Option(help="File of pairs, right and wrong.")] = None,  # noqa: UP045
    review: Annotated[Optional[Path], typer.Option(help="File of lessons whose facts are in doubt.")] = None,  # noqa: UP045
    card: Annotated[Optional[Path], typer.Option(help="Dataset card to write.")] = None,  # noqa: UP045
    reasoning: Annotated[bool, typer.Option(help="Keep the reasoning in the lessons.")] = True,
) -> None:
    """Divide answers into lessons and rejects: verified, not repeated, not in an evaluation file.

    The answer is the assistant's turn at the end of a line's messages, or its completion, response, output or solution.
    The right answer is in reference, ground_truth or the like. Samples of one question stand in consecutive lines.
    """
    from stillroom.lessons.filter.filter_file import filter_file, settings_recipe, summary_lines

    recipe = settings_recipe(sets or (), source)
    summary = filter_file(
        source,
        out,
        recipe,
        rejected=rejected,
        preferences=preferences,
        review=review,
        reasoning=reasoning,
    )
    if card is not None:
        from stillroom.contracts.files import write_atomically
        from stillroom.report.cards import dataset_card

        write_atomically(card, dataset_card(summary, recipe, source=source))
    for line in summary_lines(summary):
        print(line, file=sys.stderr)


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


@app.command(
    epilog="Examples: stillroom teach questions.jsonl --model gpt-4o-mini --api openai --dry-run; "
    "cat questions.txt | stillroom teach - --model large --api http://127.0.0.1:8080/v1 --echo | head"
)
def teach(
    source: Annotated[
        str, typer.Argument(help="Questions: JSONL, text, one a line, or - for standard input.")
    ],
    model: Annotated[str, typer.Option(help="The teacher: its name at the API, or a folder or .gguf file.")],
    api: Annotated[Optional[str], typer.Option(help="Base URL of the API, or openai.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="File of answers; those it has are not asked for again.")] = Path(
        "answers.jsonl"
    ),
    sets: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option(
            "--set", help="Any teach.* or teacher.* setting: --set teach.samples=4. May be repeated."
        ),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars to stop at, earlier answers included.")
    ] = None,
    prices: Annotated[Optional[Path], typer.Option(help="Your file of prices and terms.")] = None,  # noqa: UP045
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Use a teacher whose terms forbid training, with leave.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seeds the samples.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would come to in requests, tokens, money and time.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Write the answers to standard output too.")] = False,
) -> None:
    """Have questions answered by a teacher, without a recipe: every answer is kept, none is paid for twice."""
    from stillroom.display import open_progress
    from stillroom.lessons.teach.teach_file import teach_file
    from stillroom.lessons.teach.teach_settings import teach_settings

    given = {"model": model, "api": api, "prices": str(prices) if prices else None}
    teacher, settings = teach_settings(
        {key: value for key, value in given.items() if value}
        | ({"accept_terms": True} if accept_terms else {}),
        {"max_cost": max_cost} if max_cost is not None else {},
        sets or (),
    )
    counts = teach_file(
        source, out, teacher, settings, seed=seed, dry_run=dry_run, echo=echo, progress=open_progress()
    )
    if not dry_run:
        told = ", ".join(f"{value:,} {key}" for key, value in counts.items() if value)
        print(f"{out}: {told or 'nothing was left to ask'}", file=sys.stderr)


@app.command(epilog="Example: stillroom doctor")
def doctor() -> None:
    """Say what this machine has and what is missing: versions, accelerator, memory, disk, llama.cpp."""
    from stillroom.planning.machine import machine_lines

    for line in machine_lines():
        print(line)


book_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(book_app, name="book", help="Look at lesson books, check, join and divide them.")
Books = Annotated[
    list[Path], typer.Argument(help="Folders of lesson books, such as runs/tickets/teach/signals.")
]


@book_app.command(
    epilog="Examples: stillroom book show runs/tickets/teach/signals; "
    "stillroom book show runs/tickets/teach/signals --rows 2 --tokenizer runs/tickets/distil/student"
)
def show(
    folders: Books,
    row: Annotated[Optional[list[str]], typer.Option(help="Key of a row to show. May be repeated.")] = None,  # noqa: UP045
    rows: Annotated[int, typer.Option(help="Show this many rows, the first ones.")] = 0,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder with the book's tokenizer: tokens are shown as text, not as numbers."),
    ] = None,
) -> None:
    """Say what a book holds: teacher, size, what a signal keeps and how exact it is; or rows, decoded."""
    from itertools import islice

    from stillroom.signals import Book
    from stillroom.signals.showing import book_lines, row_lines

    for folder in folders:
        lines = list(book_lines(folder))
        book = Book.open(folder)
        text = _texts(book.header.tokenizer, tokenizer) if tokenizer else str
        for key in [*(row or []), *islice(book, rows)]:
            lines += row_lines(book, key, text)
        print("\n".join(lines))


def _texts(wanted: str, folder: Path) -> Callable[[int], str]:
    """What the tokens of a book are as text; BookError where the tokenizer is another."""
    from stillroom.contracts.errors import BookError
    from stillroom.models.rendering import Renderer

    renderer = Renderer.load(folder)
    if renderer.tokenizer_hash != wanted:
        raise BookError(
            "this book was captured with another tokenizer", got=renderer.tokenizer_hash, expected=wanted
        )
    return lambda token: repr(renderer.tokenizer.decode([token]))


@book_app.command(epilog="Example: stillroom book verify runs/*/teach/signals")
def verify(folders: Books) -> None:
    """Compare every byte of the books with their checksums."""
    from stillroom.signals import Book

    failed = 0
    for folder in folders:
        try:
            book = Book.open(folder)
            book.verify()
        except UserError as error:
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
        else:
            print(f"{folder}: {len(book):,} rows as they were written")
    if failed:
        raise typer.Exit(UserError.exit_code)


@book_app.command(
    epilog="Example: stillroom book merge runs/a/teach/signals runs/b/teach/signals --out books/both"
)
def merge(folders: Books, out: Annotated[Path, typer.Option(help="Folder of the book to write.")]) -> None:
    """Join books of the same tokenizer, template, temperature and kind; a row that comes twice is kept once."""
    from stillroom.signals import Book

    print(f"{out}: {len(Book.merge(folders, out)):,} rows")


@book_app.command(
    epilog="Example: stillroom book split books/both --train books/train --validation books/validation --share 0.05"
)
def split(
    folder: Annotated[Path, typer.Argument(help="Folder of a lesson book.")],
    train: Annotated[Path, typer.Option(help="Folder of the larger book to write.")],
    validation: Annotated[Path, typer.Option(help="Folder of the smaller book to write.")],
    share: Annotated[Optional[float], typer.Option(help="Share of the rows for validation.")] = None,  # noqa: UP045
    rows: Annotated[Optional[int], typer.Option(help="Or their number.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seeds the choice.")] = 0,
) -> None:
    """Divide a book into one to train on and one to validate on, row by row."""
    from stillroom.signals import Book

    if (share is None) == (rows is None):
        raise UserError("a split wants either --share or --rows")
    parts = Book.open(folder).split(train, validation, share=share, rows=rows, seed=seed)
    for part in parts:
        print(f"{part.folder}: {len(part):,} rows")
