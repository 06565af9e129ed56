"""The whole way of a run: what it would do, doing it, how far it is, its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stillroom.cli.results import show_results
from stillroom.contracts.errors import UserError

if TYPE_CHECKING:
    from stillroom.contracts.runfolder import Run

verbs = typer.Typer()

Sets = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at run time
    typer.Option("--set", help="Override a setting: --set distil.learning_rate=1e-4. May be repeated."),
]
Runs = Annotated[Path, typer.Option(help="Where run folders are.", envvar="STILLROOM_RUNS")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, a folder with recipe.yaml, or a run folder.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/tickets.")]


def _run_of(path: Path, sets: list[str] | None, runs: Path) -> Run:
    """The run that a recipe gets, or the run in a folder; nothing is written."""
    from stillroom.contracts.loading import load_recipe
    from stillroom.contracts.runfolder import Run

    if Run.is_run(path):
        return Run.open(path, sets or ())
    recipe = load_recipe(path, sets or ())
    return Run(runs / recipe.name, recipe, (path if path.is_dir() else path.parent).resolve())


@verbs.command(
    epilog="Examples: stillroom plan tickets --set distil.batch_size=64; stillroom plan mine --vram 16GB"
)
def plan(
    recipe: RecipePath,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    vram: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Plan for a card of this size, such as 16GB, instead of this machine."),
    ] = None,
) -> None:
    """Say what a run would do and what it needs, without doing it: parameters, memory, minutes, files, disk, money."""
    from stillroom.lessons.expand.forecast import forecast, forecast_lines
    from stillroom.pipeline import parts, waiting
    from stillroom.planning.machine import bytes_of
    from stillroom.planning.plan import Asked, plan_lines

    card = bytes_of(vram) if vram else None
    found_runs = parts(_run_of(recipe, sets, runs))
    for run, waits in zip(found_runs, waiting(found_runs), strict=True):
        if waits:
            print(f"run            {run.path}: known once {run.recipe.teacher.model} is there")
            continue
        found = forecast(run)
        asked = Asked(found.answers, found.mean_tokens, list(forecast_lines(found, run)))
        for line in plan_lines(run, asked, vram=card):
            print(line)


@verbs.command(
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
    from_traffic: Annotated[
        bool,
        typer.Option(
            "--from-traffic",
            help="Learn as well from what `stillroom serve --keep-escalated` has sent on, route/escalated.jsonl.",
        ),
    ] = False,
) -> None:
    """Go the whole way: prompts, teach, filter, distil, quantise, evaluate, export, report.

    What is done is skipped, what was stopped goes on, and one line says why a stage runs. Under torchrun or `accelerate
    launch` the processes train together; all other work is the first one's.
    """
    from stillroom.display import open_progress
    from stillroom.pipeline import STAGES, check, follow, outlook, parts, run_pipeline
    from stillroom.ranks import together

    found = _run_of(recipe, sets, runs)
    if from_traffic:
        found = _run_of(recipe, [*(sets or ()), _with_traffic(found)], runs)
    names = [stage.name for stage in STAGES if stage.wanted(found.recipe)]
    if until is not None and until not in names:
        raise UserError(f"there is no stage {until}", expected=", ".join(names))
    check(found)
    if dry_run:
        for part in _shown(parts(found)):
            for item in outlook(part):
                print(
                    f"{item.stage.name:<10} {'runs: ' + item.reason if item.reason else 'holds, would be skipped'}"
                )
        return
    with together() as first:
        if not first:
            follow()
            return
        found.save_recipe()
        with found.locked():
            run_pipeline(found, open_progress(), until=until)
    if until is None:
        show_results(found)


def _with_traffic(run: Run) -> str:
    """The override by which a run's prompts have what its cascade sent on among them, once."""
    log = (run.folder("route") / "escalated.jsonl").resolve()
    if not log.is_file():
        raise UserError(
            "no traffic was kept",
            got=f"nothing at {log}",
            do=f"serve the cascade with it kept: stillroom serve {run.path} --keep-escalated",
        )
    sources = [source.model_dump(mode="json", exclude_unset=True) for source in run.recipe.prompts]
    others = [source for source in sources if source["file"] != str(log)]
    return f"prompts={json.dumps([*others, {'file': str(log)}], ensure_ascii=False)}"


@verbs.command(epilog="Example: stillroom status runs/tickets")
def status(path: RunPath) -> None:
    """Say which stages of a run are done, with their counts and seconds, and what would run next."""
    from stillroom.contracts.runfolder import Run
    from stillroom.display import duration
    from stillroom.pipeline import outlook, parts

    for found in _shown(parts(Run.open(path))):
        for item in outlook(found):
            manifest = found.manifest(item.stage.name)
            if manifest is None:
                print(f"{item.stage.name:<10} {item.reason}")
                continue
            counts = ", ".join(f"{v:,} {k}" for k, v in manifest.counts.items() if isinstance(v, int) and v)
            state = "done" if item.reason is None else f"out of date: {item.reason}"
            print(f"{item.stage.name:<10} {state}, {duration(manifest.seconds)}  {counts}")


def _shown(runs: list[Run]) -> Iterator[Run]:
    """The runs of a chain whose teachers are there, each under its name; a run without a chain alone."""
    from stillroom.pipeline import waiting

    for run, waits in zip(runs, waiting(runs), strict=True):
        if len(runs) > 1:
            print(f"{run.path}: taught by {run.recipe.teacher.model}")
        if waits:
            print(f"{'':<10} waits for it")
        else:
            yield run


@verbs.command(
    epilog="Examples: stillroom report runs/tickets; stillroom report runs/tickets --set report.keep=0.9; "
    "stillroom report runs/tickets runs/smaller --out smaller.html"
)
def report(
    path: RunPath,
    other: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="Another run folder: the two are compared.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Page of a comparison. Empty: A-and-B.html beside the first run's folder."),
    ] = None,
    sets: Sets = None,
) -> None:
    """Write the report of a run anew, runs/NAME/report.html, or compare two runs on one page.

    The same figures lie beside the page as .json and .csv.
    """
    first = _evaluated(path, sets)
    if other is None:
        from stillroom.report.page import write_report

        if out is not None:
            raise UserError(
                "--out is for a comparison",
                expected="two runs",
                do="leave it out: a run's report lies in its folder",
            )
        print(write_report(first))
        return
    from stillroom.cli.results import show_comparison

    second = _evaluated(other, sets)
    show_comparison(first, second, out or path.parent / f"{path.name}-and-{other.name}.html")


def _evaluated(path: Path, sets: list[str] | None) -> Run:
    """A run whose evaluation is done; of a chain the last."""
    from stillroom.contracts.runfolder import Run
    from stillroom.pipeline import parts

    found = parts(Run.open(path, sets or ()))[-1]
    found.need("evaluate")
    return found
