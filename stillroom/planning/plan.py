"""What a run would do and what it needs, before anything runs: requests and money, memory, minutes, book, disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from stillroom.contracts.recipe import Recipe
from stillroom.contracts.runfolder import Run
from stillroom.planning.capturing import ANSWER_TOKENS, QUESTION_TOKENS, Capture, capture_sums, hidden_bytes
from stillroom.planning.cautions import caution_lines
from stillroom.planning.expecting import expectation_lines
from stillroom.planning.held import expected_memory
from stillroom.planning.machine import cores, memory_bytes, size
from stillroom.planning.needs import disk_lines, file_lines, lesson_length, memory_lines
from stillroom.planning.pace import TIMED, expected, work_of
from stillroom.planning.shapes import shapes_of
from stillroom.planning.sums import Shape

_VOCABULARY = 150_000
"""A guess where the student's config is not here."""
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


def plan_lines(run: Run, asked: Asked, *, vram: int | None = None) -> Iterator[str]:
    """The plan, a line each.

    Args:
        run: the run, of which nothing need be there.
        asked: what asking the teacher comes to.
        vram: bytes of the card to plan for; None: what this machine has.

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
    teacher, student = shapes_of(run)
    length, book = lesson_length(asked.mean_tokens), 0.0
    if teacher:
        yield f"teacher        {teacher.parameters:,} parameters"
    if student:
        share = f", {student.parameters / teacher.parameters:.0%} of the teacher's" if teacher else ""
        yield f"student        {student.parameters:,} parameters{share}"
        yield from memory_lines(recipe, student, teacher, length, vram, partial(expected_memory, run))
    if recipe.teach.signal.kind != "none":
        sums = _capture(recipe, asked, teacher, student)
        book = sums.bytes
        yield from _capture_lines(asked, teacher, sums)
    yield from caution_lines(run, teacher, student, asked.answers, length)
    yield _steps_line(recipe, asked.answers)
    if rounds := recipe.distil.rounds:
        spared = "" if recipe.distil.teacher != "book" else ", each scored by the teacher"
        yield f"rounds         {rounds.count} of up to {rounds.questions} answers by the student{spared}"
    if student and recipe.distil.loss.soft:
        yield from expectation_lines(run, student, asked.answers, length)
    yield from _time_lines(run, asked)
    yield from file_lines(recipe, student, vram)
    yield from disk_lines(run, student, book)
    yield _machine_line()


def _time_lines(run: Run, asked: Asked) -> Iterator[str]:
    """Seconds of each stage as earlier runs on this machine have it."""
    length, known = asked.mean_tokens or ANSWER_TOKENS, 0
    for stage in TIMED:
        work = work_of(run, stage, asked.answers, length)
        found = expected(run, stage, work) if work else None
        if found:
            known += 1
            unit = "s" if found.value < 90 else "min"
            per = 1 if unit == "s" else 60
            spread = f", {found.low / per:,.0f} to {found.high / per:,.0f}" if found.runs > 1 else ""
            runs = "one run" if found.runs == 1 else f"{found.runs} runs"
            yield f"time           {stage} about {found.value / per:,.0f} {unit}{spread}, by {runs} on this machine"
    if not known:
        yield "time           known after the first run: its stages' seconds are kept in pace.json"


def _missing_lines(run: Run) -> Iterator[str]:
    """What later stages read and is not there; the questions' own files are read by whoever counts them."""
    recipe = run.recipe
    replay = [recipe.distil.replay.file] if recipe.distil.replay else []
    apart = [recipe.route.file] if recipe.route and recipe.route.file else []
    for name in dict.fromkeys([*replay, *recipe.evaluate.files, *recipe.filter.decontaminate, *apart]):
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


def _capture(recipe: Recipe, asked: Asked, teacher: Shape | None, student: Shape | None) -> Capture:
    vocab = student.vocab if student else _VOCABULARY
    each, head = _API_BYTES if recipe.teacher.api else recipe.teach.signal.bytes_per_token, 0
    if recipe.teach.signal.kind == "hidden" and teacher:
        each, head = hidden_bytes(teacher.hidden, vocab, recipe.teacher.dtype)
    return capture_sums(
        asked.answers,
        question_tokens=QUESTION_TOKENS,
        answer_tokens=asked.mean_tokens or ANSWER_TOKENS,
        vocab=vocab,
        bytes_per_token=each,
        head=head,
        parameters=teacher.parameters if teacher else None,
        flops=1e12,
    )


def _capture_lines(asked: Asked, teacher: Shape | None, sums: Capture) -> Iterator[str]:
    """What the lesson book takes: bytes, and the teacher's time over it."""
    length, why = (
        asked.mean_tokens or ANSWER_TOKENS,
        "as those so far have" if asked.mean_tokens else "a guess",
    )
    yield f"lesson book    at most {size(sums.bytes)} if answers have {length:,.0f} tokens ({why})"
    if sums.head and teacher:
        each = hidden_bytes(teacher.hidden, 1)[0]
        yield f"               {size(sums.head)} of it are the teacher's head, each token's hidden state {each:,} bytes"
    if sums.seconds is not None:
        unit = "second" if sums.seconds < 90 else "minute"
        passed = sums.seconds if unit == "second" else sums.seconds / 60
        yield f"capture        {passed:,.0f} {unit}s of the teacher for each TFLOP/s that the machine really does"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "no baseline"
