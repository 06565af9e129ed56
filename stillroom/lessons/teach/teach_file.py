"""`stillroom teach`: questions of any file, or of a pipe, to answers, without a recipe."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import PromptSource, Teach, Teacher
from stillroom.contracts.records import Answer, Answerer, Request, Sampling, from_line, to_line
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.sources import question_of, read_questions
from stillroom.lessons.teach.answered import AnswersFile, Totals
from stillroom.lessons.teach.asking import (
    Asking,
    KnownRequest,
    RunPrompt,
    beginnings_together,
    take_logged,
    tools_of,
)
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.outlook import Outlook, look_ahead, outlook_lines
from stillroom.lessons.teach.teach_settings import check_ways
from stillroom.lessons.teach.teaching import Panel, conclude, teach
from stillroom.models.api_teacher import open_api_teacher
from stillroom.models.endpoint import base_url
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import teacher_identity
from stillroom.models.teachers import check_terms, price_of, terms_of

PIPE = "-"


def questions(source: str, say: Callable[[str], None]) -> Iterator[RunPrompt]:
    """The questions of a file, or of standard input, each with tools of its own and a log's answer, if it has any.

    Files are read as a recipe's prompts are. Lines of standard input that begin with { are JSON, others questions.

    Raises:
        DataError: the file is missing, empty or malformed; the message names the line.
    """
    found = (
        _piped(sys.stdin.buffer, say)
        if source == PIPE
        else read_questions(PromptSource(file=source), Path(source), say)
    )
    for question in found:
        yield from_line(RunPrompt, {**vars(question), "source": source})


def _piped(stream: IO[bytes], say: Callable[[str], None]) -> Iterator[Question]:
    piped, said = PromptSource(file=PIPE), set[str]()
    for number, raw in enumerate(stream, 1):
        text, where = raw.decode("utf-8-sig", errors="replace").strip(), f"standard input, line {number}"
        if not text.startswith("{"):
            if text:
                yield Question([{"role": "user", "content": text}])
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON", got=str(error), expected="an object, or plain text"
            ) from None
        question, how = question_of(piped, line, where)
        if how not in said and len(said) < 8:
            said.add(how)
            say(f"standard input: {how}")
        yield question


def _known(prompt: RunPrompt, parameters: dict[str, Any]) -> dict[str, Any]:
    """What is known of a question and belongs on its answers' lines, since no run holds the question."""
    found = {
        "reference": prompt.reference,
        "check": prompt.check,
        "document": prompt.document,
        "tools": tools_of(prompt, parameters),
    }
    return {name: value for name, value in found.items() if value is not None}


def teach_file(
    source: str,
    out: Path,
    teacher: Teacher,
    settings: Teach,
    *,
    seed: int = 0,
    dry_run: bool = False,
    echo: bool = False,
    progress: Progress,
) -> Counter[str]:
    """Have every question of a file answered; answers that are in `out` already are not asked for again.

    Args:
        source: a file of questions, or `-` for standard input.
        out: JSONL file of answers, appended to.
        teacher: who is asked.
        settings: how.
        seed: seeds the samples.
        dry_run: print what it would come to, and stop.
        echo: write each answer to these questions, earlier ones included, to standard output too.
        progress: where to report to.

    Returns:
        counts of what was answered now, by how it ended, and tokens.

    Raises:
        UserError: what is asked for cannot be done, or the limit of costs is reached.
        TeacherError: the API refuses, or the teacher's terms forbid this.
        ServiceFault: the API keeps failing.
    """
    check_ways(teacher, settings)
    url = base_url(teacher.api) if teacher.api else None
    origin = url or teacher_identity(teacher, Path())
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, seed)
    asking = Asking(origin, teacher.model, sampling, settings.samples, settings.system, settings.parameters)

    def requests(say: Callable[[str], None] = _silent) -> Iterator[Request]:
        for prompt in questions(source, say):
            known = _known(prompt, settings.parameters)
            for request in asking.about(
                prompt, api=url is not None, logged=settings.logged_answers == "take"
            ):
                yield KnownRequest.of(request, known)

    own = Path(teacher.prices) if teacher.prices else None
    price, terms = price_of(teacher.model, url, own), terms_of(teacher.model, url, own)
    if not dry_run:
        check_terms(teacher.model, terms, accepted=teacher.accept_terms)
    # A pipe is read once: what it holds is not known before it is asked.
    unknown = source == PIPE and not dry_run
    totals, outlook = _before(out, () if unknown else requests(progress.say), settings.parameters)
    bill = Bill(
        price,
        sampling,
        spent=totals.cost,
        limit=settings.max_cost,
        batch=settings.batch_endpoint,
        parameters=settings.parameters,
    )
    lines = outlook_lines(outlook, totals, teacher, settings, price, terms)
    for text in takewhile(lambda line: not line.startswith("requests"), lines) if unknown else lines:
        (print if dry_run else progress.say)(text)
    if dry_run:
        return Counter()
    total, done = (None, 0) if unknown else (outlook.requests, outlook.answered)
    answerer = _open(teacher, settings, out)
    try:
        with (
            AnswersFile(out, writable=True) as file,
            progress.meter("teacher answers", total, "answers", done=done) as meter,
        ):
            panel = Panel(meter, total, done)
            # Of a pipe nothing is held back to be sorted: its writer may wait for answers.
            asked = requests(progress.say) if unknown else beginnings_together(requests())
            taught = teach(
                take_logged(asked, file), answerer, sampling, file, bill, panel, _print if echo else None
            )
    finally:
        answerer.close()
    conclude(taught, bill)
    return taught.counts


def _silent(text: str) -> None:
    """What was said once is not said again."""


def _before(out: Path, requests: Iterable[Request], parameters: dict[str, Any]) -> tuple[Totals, Outlook]:
    """What the answers so far came to, and what is left to ask; nothing is written yet."""
    if not out.exists():
        return Totals(), look_ahead(requests, None, parameters)
    with AnswersFile(out) as file:
        return file.totals, look_ahead(requests, file, parameters)


def _open(teacher: Teacher, settings: Teach, out: Path) -> Answerer:
    """The teacher, loaded or connected when something is first asked of it."""
    if teacher.api:
        batches = out.with_name(out.name + ".batches")
        return WhenAsked(teacher.model, lambda: open_api_teacher(teacher, settings, batches))
    sizes = {"batch_size": settings.batch_size, "concurrency": settings.concurrency}
    return WhenAsked(teacher.model, lambda: open_teacher(teacher, Path(), None, **sizes))


def _print(answer: Answer) -> None:
    """One line on standard output; a reader that has gone takes the rest with it, not the answers in the file."""
    try:
        print(json.dumps(to_line(answer), ensure_ascii=False), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
