"""Run a Python program that nobody has read, and live.

The program runs in a process of its own. On Linux it sees a world of its own: no network, no other processes, a file system
that cannot be changed except for an empty folder in memory, no capabilities; system calls that start processes, open
sockets or reach the kernel are refused. CPU, memory, open files, file sizes, output and time are limited everywhere, and at
the end the whole group of processes is killed.

What is not kept from it: reading files that the user may read (nothing can be sent anywhere), and the processor's side
channels. It shares the interpreter with the tests that judge it, so a program that sets out to deceive them can: this guards
against what models write, not against a person who knows this page.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from stillroom.contracts.errors import Fault

Confinement = Literal["full", "no files", "limits", "unknown"]
Status = Literal["passed", "failed", "time", "output", "killed"]

_ROOT = str(Path(__file__).parents[3])
_START = "import sys; sys.path.insert(0, {root!r}); from stillroom.checks.sandbox.inside import main; main()"
_KEPT = 4096
"""How much of the program's output is kept, from its end, bytes."""
_MOST_RESULT = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    cpu_seconds: int = 10
    """Processor time."""
    seconds: float = 30.0
    """Time on the clock, starting the interpreter included: busy machines are slow, so it is longer."""
    memory_bytes: int = 1 << 30
    """Address space."""
    file_bytes: int = 16 << 20
    """Size of a file, and of all files of the scratch folder together."""
    output_bytes: int = 1 << 20
    """What it may print before it is killed."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Status
    """`passed`: it ran to its end. `failed`: an exception, or it left early. `time`, `output`: over the limit.
    `killed`: by a signal, most often over its CPU time."""
    output: str
    """The end of what it printed, errors included."""
    confinement: Confinement
    """`full`; `no files`: no namespaces, so it could write no file at all; `limits`: only those, as on macOS."""
    seconds: float
    result: Any = None
    """What the program called `result`, as JSON, where it was asked for."""


def run_python(
    program: str, limits: Limits | None = None, *, trusted: bool = False, result: bool = False
) -> Outcome:
    """Run a program to its end, or to its limits.

    Args:
        program: Python source. It may import what is installed here.
        limits: what it may use.
        trusted: run it even where the system can do no more than limit it.
        result: hand back the program's variable `result`.

    Raises:
        Fault: the system cannot confine a program, and it is not trusted.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    job = {
        "program": program,
        "token": token,
        "result": result,
        "required": not trusted,
        "hide": [_ROOT] if _ROOT not in sys.path else [],
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
    }
    began = time.monotonic()
    report_out, report_in = os.pipe()
    job["report"] = report_in
    process = _start(report_in)
    os.close(report_in)
    with os.fdopen(report_out, "rb", buffering=0) as report:
        try:
            over, output, said = _follow(process, report, json.dumps(job).encode(), began, limits)
        finally:
            _end(process)
    confinement, _, tail = said.partition("\n")
    if not trusted and confinement in ("limits", ""):
        _refuse(confinement, output)
    seconds = time.monotonic() - began
    known: Confinement = confinement if confinement in ("full", "no files", "limits") else "unknown"  # type: ignore[assignment]
    if over is not None:
        return Outcome(over, output, known, seconds)
    given, _, value = tail.strip().partition(" ")
    if given == token and process.returncode == 0:
        return Outcome("passed", output, known, seconds, json.loads(value) if value else None)
    signalled = process.returncode < 0 or process.returncode > 128
    return Outcome("killed" if signalled else "failed", output, known, seconds)


def _refuse(confinement: str, output: str) -> None:
    raise Fault(
        "this machine cannot confine a program",
        got=output.strip().rpartition("\n")[2] or "limits on CPU, memory and time only",
        expected="Linux with seccomp, and user namespaces for files of its own",
        do="check code on another machine, or say that you trust it: filter.trusted: true",
    )


def _start(report: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", "-B", "-c", _START.format(root=_ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},  # no keys, no addresses
        start_new_session=True,
        pass_fds=(report,),
    )


def _follow(
    process: subprocess.Popen[bytes], report: IO[bytes], job: bytes, began: float, limits: Limits
) -> tuple[Literal["time", "output"] | None, str, str]:
    """Feed the job, read until the end or a limit: what was over its limit, the output's end, the report."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it died at once; its output says why
        process.stdin.write(job)
        process.stdin.close()
    texts, total = {process.stdout: b"", report: b""}, 0
    over: Literal["time", "output"] | None = None
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and over is None:
            left = began + limits.seconds - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                over = "time"
            for key, _ in ready:
                block = os.read(key.fd, 65536)
                if not block:
                    selector.unregister(key.fileobj)
                    continue
                stream = key.fileobj  # type: ignore[assignment]
                total += len(block)
                texts[stream] = (texts[stream] + block)[
                    -(_KEPT if stream is process.stdout else _MOST_RESULT) :
                ]
                if total > limits.output_bytes:
                    over = "output"
    output = texts[process.stdout].decode(errors="replace")
    return over, output, texts[report].decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group, whatever is left of it, and take leave of the process."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)  # its pipes are closed, or it is over a limit
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
