"""Making a job to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from stillroom.contracts.errors import UserError

verbs = typer.Typer()


@verbs.command(
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
    messages: Annotated[int, typer.Option(help="Of the example job: messages without answers.")] = 2000,
    labelled: Annotated[int, typer.Option(help="Of the example job: messages with right answers.")] = 200,
    evaluation: Annotated[int, typer.Option(help="Of the example job: messages for the evaluation.")] = 2000,
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
