"""What a run would do and what it needs, before anything runs: requests and money, memory, size of the book, disk.

The minutes of training, of a local teacher and of the evaluation are not estimated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.contracts.recipe import Prune, Recipe
from stillroom.contracts.runfolder import Run
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.planning.capturing import capture_sums, hidden_bytes
from stillroom.planning.machine import cores, memory_bytes, size
from stillroom.planning.memory import recipe_memory
from stillroom.planning.sums import Shape

_ANSWER_TOKENS = 100
"""A guess at an answer's length where nothing has been answered yet."""
_QUESTION_TOKENS, _VOCABULARY = 50, 150_000
"""Guesses where the questions have not been read and the student's config is not here."""
_API_BYTES = 70
"""Of a token's signal from an API's 20 likeliest: ids of up to 18 bits, a byte for each weight, the bucket."""


@dataclass(frozen=True)
class Asked:
    """What asking the teacher comes to, which whoever reads the sources knows.

    `lines` are for the reader: what each is about, and what it says. `mean_tokens` is that of the answers so far, None
    where there are none.
    """

    answers: int
    mean_tokens: float | None
    lines: Sequence[tuple[str, str]]


def plan_lines(run: Run, asked: Asked) -> Iterator[str]:
    """The plan, a line each.

    Raises:
        DataError, ModelError: a file or model that the recipe names is not there.
    """
    recipe = run.recipe
    yield f"run            {run.path}"
    yield from _missing_lines(run)
    for label, text in asked.lines:
        yield f"{label:<14} {text}"
    if recipe.classify:
        yield from _classifier_lines(recipe, asked.answers)
        yield _machine_line()
        return
    teacher, student = _shapes(run)
    if teacher:
        yield f"teacher        {teacher.parameters:,} parameters"
    if student:
        share = f", {student.parameters / teacher.parameters:.0%} of the teacher's" if teacher else ""
        yield f"student        {student.parameters:,} parameters{share}"
        if teacher and student.parameters < 0.1 * teacher.parameters:
            yield "  warning: under 10 % of the teacher's parameters the loss by compression becomes severe"
        tokens = recipe.distil.micro_batch_size * 2 * _ANSWER_TOKENS
        halves = recipe.distil.precision != "float32"
        need = recipe_memory(recipe, student, teacher, tokens, bfloat16=halves).total
        yield f"training       about {size(need)} at {recipe.distil.micro_batch_size} lessons of 200 tokens at once"
        if need > memory_bytes():
            yield f"  warning: this machine has {size(memory_bytes())}; lower distil.micro_batch_size"
    answers = asked.answers
    if recipe.teach.signal.kind != "none":
        yield from _capture_lines(run, asked, teacher, student)
    if answers < 500:
        yield f"  warning: {answers} lessons: under 500 a student memorises examples rather than learns the task"
    yield _steps_line(recipe, answers)
    if rounds := recipe.distil.rounds:
        spared = "" if recipe.distil.teacher != "book" else ", each scored by the teacher"
        yield f"rounds         {rounds.count} of up to {rounds.questions} answers by the student{spared}"
    yield f"files          {_listed(['F16', *recipe.files])}"
    yield _machine_line()


def _missing_lines(run: Run) -> Iterator[str]:
    """What later stages read and is not there; the questions' own files are read by whoever counts them."""
    recipe = run.recipe
    replay = [recipe.distil.replay.file] if recipe.distil.replay else []
    tasks = [task.file for task in recipe.evaluate.tasks if task.file]
    for name in dict.fromkeys([*replay, *tasks, *recipe.filter.decontaminate]):
        if not name.startswith("hub:") and not run.locate(name).exists():
            yield f"  missing: {run.locate(name)}; check the path, it is relative to the recipe"


def _steps_line(recipe: Recipe, lessons: int) -> str:
    steps = recipe.distil.steps or round(recipe.distil.epochs * lessons / recipe.distil.batch_size)
    replay = recipe.distil.replay
    beside = f" and {replay.share:g} times as many rows of {replay.file}" if replay else ""
    return (
        f"steps          {steps:,} of {recipe.distil.batch_size} lessons{beside}; as many for each of "
        f"{_listed(recipe.baselines)}"
    )


def _machine_line() -> str:
    return f"this machine   {cores()} cores, {size(memory_bytes())} of memory, {size(shutil.disk_usage('.').free)} of disk"


def _classifier_lines(recipe: Recipe, questions: int) -> Iterator[str]:
    """What a job of choosing among classes comes to."""
    spec = recipe.classify
    assert spec is not None
    several = "any number of classes" if spec.several else "one class"
    labels = f"{spec.labels} right answers of each class" if spec.labels else "all right answers"
    yield f"classes        {several} a question; {labels} are used"
    if spec.prepare:
        yield f"teacher        learns them first, {spec.prepare.epochs:g} passes over the questions with a right answer"
    copies = spec.masked.copies if spec.masked else 0
    if copies:
        yield f"copies         {copies * questions:,} questions with hidden words"
    yield _steps_line(recipe, questions * (1 + copies))
    yield f"files          {_listed(['F32', *recipe.files]) if recipe.files else 'the Hugging Face folder alone'}"


def _capture_lines(run: Run, asked: Asked, teacher: Shape | None, student: Shape | None) -> Iterator[str]:
    """What the lesson book takes: bytes, and the teacher's time over it."""
    recipe = run.recipe
    length = asked.mean_tokens or _ANSWER_TOKENS
    vocab = student.vocab if student else _VOCABULARY
    each, head = _API_BYTES if recipe.teacher.api else recipe.teach.signal.bytes_per_token, 0
    if recipe.teach.signal.kind == "hidden" and teacher:
        each, head = hidden_bytes(teacher.hidden, vocab, recipe.teacher.dtype)
    sums = capture_sums(
        asked.answers,
        question_tokens=_QUESTION_TOKENS,
        answer_tokens=length,
        vocab=vocab,
        bytes_per_token=each,
        head=head,
        parameters=teacher.parameters if teacher else None,
        flops=1e12,
    )
    why = "as those so far have" if asked.mean_tokens else "a guess"
    yield f"lesson book    at most {size(sums.bytes)} if answers have {length:,.0f} tokens ({why})"
    if head:
        yield f"               {size(head)} of it are the teacher's head, each token's hidden state {each:,} bytes"
    if sums.seconds is not None:
        unit = "second" if sums.seconds < 90 else "minute"
        passed = sums.seconds if unit == "second" else sums.seconds / 60
        yield f"capture        {passed:,.0f} {unit}s of the teacher for each TFLOP/s that the machine really does"


def _shapes(run: Run) -> tuple[Shape | None, Shape | None]:
    """The teacher's and the student's sizes, None where they cannot be read here."""
    recipe = run.recipe
    teacher = None
    if not recipe.teacher.api:
        found = resolve_model(recipe.teacher.model, run.base)
        teacher = Shape.read(found) if isinstance(found, Path) and found.is_dir() else None
    source = student_source(recipe, run.base)
    student = Shape.read(source) if isinstance(source, Path) else None
    if student and recipe.student.prune:
        student = _cut(student, recipe.student.prune)
    if recipe.student.config:
        student = None
    return teacher, student


def _cut(whole: Shape, prune: Prune) -> Shape:
    """The sizes of what a recipe cuts out of a model; heads take their key-value heads with them."""
    heads = prune.heads or whole.heads
    return replace(
        whole,
        layers=prune.layers or whole.layers,
        hidden=prune.hidden or whole.hidden,
        mlp=prune.mlp or whole.mlp,
        heads=heads,
        kv_heads=max(1, whole.kv_heads * heads // whole.heads),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "no baseline"
