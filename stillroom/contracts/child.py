"""Work in a process of its own: what it took is free again when it ends, and a crash is a sentence, not the end.

A plain subprocess, not `multiprocessing`: that runs the caller's main module again, which a notebook or a script without a
guard does not survive. Only JSON goes over the pipes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stillroom.contracts import errors
from stillroom.contracts.errors import Fault, StillroomError
from stillroom.contracts.launchers import without_launcher

Advance = Callable[[float, str | None], None]
"""So many more units are done; a short word beside the bar."""

_PACKAGE = str(Path(__file__).parents[2])
# The package's own place goes last, so that nothing beside it hides another library.
_START = "import sys; sys.path.append(sys.argv.pop()); from stillroom.contracts.child import main; main()"


def run_child(work: str, job: str, *, label: str, advance: Advance, relief: str) -> Any:
    """Call a function in a fresh process, which ends with it.

    Args:
        work: "package.module:function"; it is given the job and a function of its own to report with, and returns what JSON
            can hold.
        job: text, as the function reads it.
        label: what is being done, for messages: "evaluating student".
        advance: told whatever the function reports.
        relief: what the user can do about a process that took too much memory.

    Raises:
        StillroomError: what the process raised.
        Fault: the process died; the message says how.
    """
    outcome: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors_file:
        with _started(work, job, errors_file) as (process, events):
            for line in events:
                if not line.endswith("\n"):  # killed while it wrote
                    break
                event = json.loads(line)
                if "advance" in event:
                    advance(*event["advance"])
                else:
                    outcome = event
            code = process.wait()
        last_words = _last_line(errors_file)
    if "error" in outcome:
        raise _error(**outcome["error"])
    if "result" not in outcome:
        raise _death(label, code, last_words, relief)
    return outcome["result"]


def main() -> None:
    """In the child: argv holds the file descriptor for events and the function's name, standard input the job.

    Events, one JSON object a line: {"advance": [count, note]}, and at the end {"result": ...} or {"error": ...}.
    """
    job = sys.stdin.read()
    module, _, name = sys.argv[2].partition(":")
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as events:

        def send(**event: Any) -> None:
            events.write(json.dumps(event, ensure_ascii=False) + "\n")
            events.flush()

        try:
            work = getattr(importlib.import_module(module), name)
            send(result=work(job, lambda count, note: send(advance=[count, note])))
        except StillroomError as error:
            parts = {part: getattr(error, part) for part in ("what", "got", "expected", "do")}
            texts = {part: None if value is None else str(value) for part, value in parts.items()}
            send(error={"type": type(error).__name__, **texts})


@contextmanager
def _started(
    work: str, job: str, errors_file: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """The process, with the job on its way, and its events; it does not outlive the block."""
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(write), work, _PACKAGE],
            stdin=subprocess.PIPE,
            stdout=errors_file,
            stderr=errors_file,
            pass_fds=(write,),
            env=without_launcher(),
        )
    finally:
        os.close(write)
    with os.fdopen(read, encoding="utf-8") as events:
        try:
            # A child that dies at once breaks the pipe; its exit code tells more.
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(job.encode())
            yield process, events
        finally:
            process.kill()
            process.wait()


def _error(type: str, what: str, **parts: str | None) -> StillroomError:
    kind = getattr(errors, type, Fault)
    error: StillroomError = kind(what, **parts)
    return error


def _death(label: str, code: int, last_words: str, relief: str) -> Fault:
    if code == -signal.SIGKILL:
        return Fault(
            f"{label} was killed",
            got="SIGKILL, which the system sends when memory runs out",
            do=f"{relief}, close other programs, and run the same command again",
        )
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Fault(
        f"{label} ended without a result",
        got=f"{how}: {last_words}" if last_words else how,
        do="run the same command again: what is done is not done twice",
    )


def _last_line(file: IO[bytes]) -> str:
    """What a crashed process said last; for a Python exception that is its name and message."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
