"""What runs in the sandbox's process: it locks itself in, then runs the program that came over standard input.

Only the standard library, since nothing else need be there. It reads one JSON job from standard input, writes one line that
says how far it could lock itself in, runs the program, and writes the job's token as the very last thing, on a descriptor of
its own: leaving early with exit code 0 does not count as success.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from typing import Any

from stillroom.checks.sandbox import namespaces, seccomp

_THREADS = 256
"""Threads that a program may have where they are counted apart from the user's others; libraries start one a core."""


def main() -> None:
    """Lock in, run, report."""
    job = json.loads(sys.stdin.buffer.read())
    sys.path[:] = [path for path in sys.path if path not in job["hide"]]
    confinement = lock_in(job)
    if job["required"] and confinement == "limits":
        _report(job, confinement)
        os._exit(0)
    _report(job, confinement)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    values = _run(job["program"])
    if job["result"]:
        token = f"{job['token']} {json.dumps(values.get('result'), default=str)}"
    else:
        token = job["token"]
    _report(job, token)
    sys.stdout.flush()
    os._exit(0)  # threads that the program left behind do not hold it


def lock_in(job: dict[str, Any]) -> str:
    """Confine this process as far as the kernel allows: `full`, `no files` (system calls refused) or `limits`."""
    own_files = False
    namespaces.die_with_parent()
    if platform.system() == "Linux":
        try:
            namespaces.enter(job["file_bytes"])
            os.chdir(namespaces.SCRATCH)
            own_files = True
        except OSError:
            pass  # user namespaces are forbidden here: no file may be written then
    _limit(job)
    if own_files and namespaces.counts_its_own_processes():
        resource.setrlimit(resource.RLIMIT_NPROC, (_THREADS, _THREADS))
    if not seccomp.available():
        return "limits"
    try:
        namespaces.drop_capabilities()
        seccomp.confine(own_files=own_files, pid=os.getpid())
    except OSError:
        return "limits"
    return "full" if own_files else "no files"


def _limit(job: dict[str, Any]) -> None:
    """Hard limits: they hold for what the program starts as well."""
    limits = {
        resource.RLIMIT_CPU: job["cpu_seconds"],
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, highest = resource.getrlimit(kind)
        if highest != resource.RLIM_INFINITY:
            limit = min(limit, highest)
        resource.setrlimit(kind, (limit, limit))


def _run(program: str) -> dict[str, Any]:
    values: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    sys.argv = ["program"]
    exec(compile(program, "program", "exec", dont_inherit=True), values)
    return values


def _report(job: dict[str, Any], text: str) -> None:
    """One line to the parent, on the descriptor that it handed down."""
    data = memoryview(text.encode() + b"\n")
    while data:
        data = data[os.write(job["report"], data) :]
