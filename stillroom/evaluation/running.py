"""Each model in a process of its own: what it took is its alone, and a crash is a sentence, not the end.

A plain subprocess, not `multiprocessing`: that runs the caller's main module again, which a notebook or a
script without a guard does not survive. Only JSON goes over the pipes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stillroom.contracts import errors
from stillroom.contracts.errors import Fault, StillroomError
from stillroom.contracts.progress import Progress
from stillroom.evaluation.job import Job, ModelSpec, Settings
from stillroom.evaluation.results import ModelResult
from stillroom.evaluation.tasks import EvaluationTask

_PACKAGE = str(Path(__file__).parents[2])
# The package's own place goes last, so that nothing beside it hides another library.
_START = "import sys; sys.path.append(sys.argv.pop()); from stillroom.evaluation.worker import main; main()"


def evaluate_model(
    spec: ModelSpec,
    tasks: list[EvaluationTask],
    settings: Settings,
    *,
    teacher: ModelSpec | None = None,
    answers: Path | None = None,
    progress: Progress | None = None,
) -> ModelResult:
    """Measure one model in a fresh process.

    Args:
        teacher: whose distributions a likelihood task's KL is taken to; None: the loss only.
        answers: JSONL file that keeps replies, so that nothing paid for is asked twice.

    Raises:
        StillroomError: what the process raised.
        Fault: the process died; the message says how.
    """
    job = Job(spec, tasks, settings, teacher, str(answers) if answers else None)
    outcome: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as errors_file,
        (progress or Progress()).meter(f"evaluating {spec.name}", job.size, "items") as meter,
        _child(job, errors_file) as (process, events),
    ):
        for line in events:
            if not line.endswith("\n"):  # killed while it wrote
                break
            event = json.loads(line)
            if "advance" in event:
                meter.advance(*event["advance"])
            else:
                outcome = event
        code = process.wait()
        last_words = _last_line(errors_file)
    if "error" in outcome:
        raise _error(**outcome["error"])
    if "result" not in outcome:
        raise _death(spec, code, last_words)
    return ModelResult.from_json(outcome["result"])


@contextmanager
def _child(job: Job, errors_file: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """The process, with the job on its way, and its events; it does not outlive the block."""
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(write), _PACKAGE],
            stdin=subprocess.PIPE,
            stdout=errors_file,
            stderr=errors_file,
            pass_fds=(write,),
        )
    finally:
        os.close(write)
    with os.fdopen(read, encoding="utf-8") as events:
        try:
            # A child that dies at once breaks the pipe; its exit code tells more.
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(job.to_json().encode())
            yield process, events
        finally:
            process.kill()
            process.wait()


def _error(type: str, what: str, **parts: str | None) -> StillroomError:
    kind = getattr(errors, type, Fault)
    error: StillroomError = kind(what, **parts)
    return error


def _death(spec: ModelSpec, code: int, last_words: str) -> Fault:
    if code == -signal.SIGKILL:
        return Fault(
            f"evaluating {spec.name} was killed",
            got="SIGKILL, which the system sends when memory runs out",
            do="lower evaluate.batch_size, close other programs, and run the same command again",
        )
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Fault(
        f"evaluating {spec.name} ended without a result",
        got=f"{how}: {last_words}" if last_words else how,
        do="run the same command again: models that are done are not measured twice",
    )


def _last_line(file: IO[bytes]) -> str:
    """What a crashed process said last; for a Python exception that is its name and message."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
