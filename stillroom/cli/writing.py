"""Models as files of other kinds."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stillroom.cli.models import Score
from stillroom.contracts.errors import UserError

if TYPE_CHECKING:
    from stillroom.evaluation import EvaluationTask

verbs = typer.Typer()

KINDS = "F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_0, Q3_K_M or Q2_K: from large to small."


@verbs.command(
    epilog="Examples: stillroom export runs/tickets --kind Q8_0 --out tickets-Q8_0.gguf; "
    "stillroom export model --kind Q3_K_M --importance lessons.jsonl; "
    "stillroom export my-adapter --base Qwen2.5-0.5B"
)
def export(
    path: Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder or a PEFT LoRA folder.")],
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help=f"{KINDS} Empty: Q4_K_M; F16 for an adapter on its own."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="The file to write.")] = None,  # noqa: UP045
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of an adapter: the model to merge it into. Empty: a GGUF adapter on its own."),
    ] = None,
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
    """Write a model as a GGUF file of another kind, checked against the Hugging Face folder; or an adapter."""
    from stillroom.contracts.runfolder import Run
    from stillroom.gguf import is_adapter, merge_adapter
    from stillroom.gguf.files import refuse_existing

    name = path.resolve().name
    if not is_adapter(path) and base is not None:
        raise UserError("--base is for adapters", got=path, do="leave --base out, or give a PEFT LoRA folder")
    if is_adapter(path) and base is None:
        if importance or dry_run:
            raise UserError(
                "an adapter on its own is not quantised",
                got="--importance" if importance else "--dry-run",
                do="leave it out, or give --base to merge the adapter into",
            )
        _export_adapter(path, out, kind or "F16")
        return
    kind = kind or "Q4_K_M"
    target = out or Path(f"{name}-{kind}.gguf")
    refuse_existing(target, overwrite=dry_run)  # before lessons are read and adapters merged
    if Run.is_run(path):
        run = Run.open(path)
        path = run.need(run.student.parent.name) / "student"
    _refuse_classifier(base or path)
    if base is None:
        _export_checked(path, target, kind, importance, dry_run=dry_run)
        return
    with TemporaryDirectory() as merged:
        merge_adapter(path, base, Path(merged) / name)
        _export_checked(Path(merged) / name, target, kind, importance, dry_run=dry_run)


def _refuse_classifier(model: Path) -> None:
    """UserError where a model chooses among classes, which llama.cpp does not."""
    from stillroom.evaluation import kind_of

    if kind_of(model) in ("classifier", "onnx"):
        raise UserError(
            "a classifier has no GGUF file",
            got=model,
            expected="a model that writes text",
            do="a run writes it as ONNX: quantise: [int8]; in Python: stillroom.onnx.export",
        )


def _export_adapter(path: Path, out: Path | None, kind: str) -> None:
    from stillroom.gguf import export_adapter

    made = export_adapter(path, out or Path(f"{path.resolve().name}-{kind}.gguf"), kind)
    print(f"{made.path}  {made.bytes:,} bytes; for {made.modules} matrices of the base model's GGUF file")


def _export_checked(source: Path, target: Path, kind: str, importance: Path | None, *, dry_run: bool) -> None:
    """Write the file; one that disagrees with its source is not left in place."""
    from stillroom.gguf import check_parity, export, importance_from, importance_source, predict_size

    if dry_run:
        size = predict_size(source, kind, weighed_by=importance_source(importance) if importance else None)
        print(f"{target}  {size:,} bytes; nothing written")
        return
    made = export(
        source, target, kind, importance=importance_from(source, importance) if importance else None
    )
    try:
        parity = check_parity(source, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    print(
        f"{target}  {made.bytes:,} bytes; mean KL to the source {parity.mean_kl:.2e} nats a token, "
        f"perplexity {100 * parity.perplexity_change:+.2f}%"
    )
    for note in made.notes:
        print(f"note: {note}")


@verbs.command(
    epilog="Examples: stillroom quantise teacher student --kind Q4_K_M --kind Q2_K --out files; "
    "stillroom quantise teacher student --kind F16 --kind Q4_K_M --compare eval.jsonl --score exact; "
    "stillroom quantise runs/tickets --compare-teacher Q4_K_M,Q2_K"
)
def quantise(
    models: Annotated[
        list[Path], typer.Argument(help="Hugging Face folders, the teacher first; or one run folder.")
    ],
    kind: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"{KINDS} May be repeated. Empty: Q4_K_M."),
    ] = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="The folder for the files, MODEL-KIND.gguf.")
    ] = Path(),
    compare: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Measure every file, and the first model itself, on these questions with right answers."
        ),
    ] = None,
    score: Annotated[Score, typer.Option(help="How answers are held against the right ones.")] = Score.json,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Use at most this many questions."),
    ] = None,
    compare_teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a run: measure its teacher as these kinds too, and write the report anew."),
    ] = None,
) -> None:
    """Write models as files of several kinds and hold them side by side: a small student, or a squeezed teacher?"""
    from stillroom.contracts.runfolder import Run

    if Run.is_run(models[0]):
        if len(models) > 1 or compare or kind or not compare_teacher:
            raise UserError(
                "a run has its own files and questions",
                got=" ".join(map(str, models)),
                expected="one run folder and --compare-teacher KIND,KIND",
                do="leave the rest out; stillroom export writes a run's student as another kind",
            )
        from stillroom.cli.runs import run

        run(models[0], sets=[f"evaluate.teacher_files=[{compare_teacher}]"])
        return
    if compare_teacher:
        raise UserError(
            "--compare-teacher is for a run", got=models[0], do="give a run folder, or --compare FILE"
        )
    task = _questions(compare, score.value, limit) if compare else None
    files = _write_each(models, list(dict.fromkeys(kind or ["Q4_K_M"])), out)
    if task:
        _compare(models[0], files, task)


def _write_each(models: list[Path], kinds: list[str], out: Path) -> list[tuple[Path, Path]]:
    """Every model as every kind, with the model that each file is of."""
    from stillroom.contracts.files import storage
    from stillroom.gguf import export_once
    from stillroom.gguf.source import ModelFolder

    names = [model.resolve().name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            "two models would write files of one name",
            got=", ".join(str(model) for model in models if model.resolve().name in twice),
            do="quantise them one after the other, each with an --out of its own, or rename a folder",
        )
    for model in models:
        _refuse_classifier(model)
        ModelFolder(model)  # whether it is one, before anything is written
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
    files = []
    for model, own in zip(models, names, strict=True):
        for kind in kinds:
            file = export_once(model, out / f"{own}-{kind}.gguf", kind)
            print(f"{file}  {file.stat().st_size:,} bytes")
            files.append((model, file))
    return files


def _questions(path: Path, score: str, limit: int | None) -> EvaluationTask:
    """Questions that the score can judge, read before anything is written."""
    from stillroom.contracts.recipe import Task
    from stillroom.stages.evaluate import read_file

    return read_file(Task(file=str(path), score=score, limit=limit), path)


def _compare(first: Path, files: list[tuple[Path, Path]], task: EvaluationTask) -> None:
    """Measure the first model and all files on the same questions; print the table."""
    from rich.console import Console

    from stillroom.display import open_progress
    from stillroom.evaluation import ModelSpec, evaluate
    from stillroom.report.console import rows_table

    own = first.resolve().name
    specs = [ModelSpec(own, "local", str(first))]
    specs += [ModelSpec(file.stem, "gguf", str(file), tokenizer=str(model)) for model, file in files]
    found = evaluate(specs, [task], teacher=own, progress=open_progress())
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(rows_table(found.rows))
