"""Models as files of other kinds."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Optional

import typer

from stillroom.contracts.errors import StillroomError, UserError

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
    if Run.is_run(path):
        run = Run.open(path)
        path = run.need(run.student.parent.name) / "student"
    if base is None:
        _export_checked(path, target, kind, importance, dry_run=dry_run)
        return
    with TemporaryDirectory() as merged:
        merge_adapter(path, base, Path(merged) / name)
        _export_checked(Path(merged) / name, target, kind, importance, dry_run=dry_run)


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
    except StillroomError:
        target.unlink(missing_ok=True)
        raise
    print(
        f"{target}  {made.bytes:,} bytes; mean KL to the source {parity.mean_kl:.2e} nats a token, "
        f"perplexity {100 * parity.perplexity_change:+.2f}%"
    )
    for note in made.notes:
        print(f"note: {note}")
