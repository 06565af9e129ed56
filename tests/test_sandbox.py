"""Programs that nobody has read: right ones pass, wrong ones fail, hostile ones come to nothing."""

from __future__ import annotations

import gzip
import json
import os
import platform
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stillroom.checks import CodeTests, Limits, failure, load_checker, run_python
from stillroom.checks.sandbox import seccomp
from stillroom.checks.sandbox.namespaces import counts_its_own_processes
from stillroom.contracts.errors import DataError, Fault

pytestmark = pytest.mark.skipif(not seccomp.available(), reason="no seccomp on this machine")
QUICK = Limits(cpu_seconds=2, seconds=60)


@pytest.fixture(scope="session")
def problems(shared_data: Path) -> list[dict[str, Any]]:
    with gzip.open(shared_data / "humaneval/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def verdicts(problems: list[dict[str, Any]], answers: list[str]) -> list[str | None]:
    tests = [CodeTests.read(json.dumps(problem)) for problem in problems]
    limits = Limits(cpu_seconds=20, seconds=300)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda pair: failure(*pair, limits), zip(answers, tests, strict=True)))


def test_all_humaneval_references_pass(problems: list[dict[str, Any]]) -> None:
    found = verdicts(problems, [problem["canonical_solution"] for problem in problems])
    assert len(found) == 164
    assert {problem["task_id"]: why for problem, why in zip(problems, found, strict=True) if why} == {}


def test_mutated_humaneval_references_fail(problems: list[dict[str, Any]]) -> None:
    """A third of the problems: their function gives back something else."""
    some = problems[::3]
    # Whatever the right answer is, a fresh object equals nothing, and arithmetic and truth go wrong with it too.
    broken = [
        f"```python\n{problem['prompt']}{problem['canonical_solution']}\n_right = {problem['entry_point']}\n"
        f"def {problem['entry_point']}(*args):\n    return [_right(*args), 'and more']\n```"
        for problem in some
    ]
    found = verdicts(some, broken)
    assert [problem["task_id"] for problem, why in zip(some, found, strict=True) if why is None] == []


def test_a_whole_function_a_body_and_a_fenced_answer_are_all_understood() -> None:
    tests = CodeTests("def check(f):\n    assert f(2) == 4", "double", 'def double(x):\n    """Twice x."""\n')
    for answer in (
        "    return 2 * x\n",
        "return 2 * x",
        "def double(x):\n    return x + x",
        "Here:\n```python\ndef double(x):\n    return x * 2\n```\nIt doubles.",
        "<think>easy</think>\n```\ndouble = lambda x: 2 * x\n```",
    ):
        assert failure(answer, tests) is None, answer
    assert failure("    return x\n", tests) == "AssertionError"
    assert failure("I would return twice x", tests) == "not Python"
    assert failure("", tests) == "not Python"


HOSTILE = {
    "forks without end": ("import os\nwhile True: os.fork()", {"failed"}),
    "starts a process": ("import subprocess\nsubprocess.run(['/bin/true'])", {"failed"}),
    "never ends": ("while True: pass", {"killed", "time"}),
    "ignores signals": (
        "import signal\nfor s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        {"killed", "time"},
    ),
    "takes all memory at once": ("x = 'a' * (8 << 30)", {"failed"}),
    # On a busy machine its seconds are over before the memory is.
    "takes all memory bit by bit": (
        "x = []\nwhile True: x.append(bytearray(32 << 20))",
        {"failed", "killed", "time"},
    ),
    "prints a gigabyte": ("import os\nfor _ in range(1024): os.write(1, b'x' * (1 << 20))", {"output"}),
    "opens a socket": ("import socket\nsocket.socket()", {"failed"}),
    "writes a huge file": ("open('big', 'wb').write(b'x' * (64 << 20))", {"failed"}),
    "fills the folder": ("for i in range(64): open(f'f{i}', 'wb').write(b'x' * (1 << 20))", {"failed"}),
    "kills everybody": ("import os\nos.kill(-1, 9)", {"failed", "killed"}),
    "leaves before its tests": ("import os\nos._exit(0)", {"failed"}),
    "leaves politely": ("raise SystemExit(0)", {"failed"}),
    "recurses": ("f = lambda: f()\nf()", {"failed"}),
    "reads a disk": ("open('/dev/vda', 'rb').read(1); open('/dev/sda', 'rb').read(1)", {"failed"}),
    "mounts": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b't', b'/mnt', b'tmpfs', 0, None) == 0",
        {"failed"},
    ),
    "makes a world of its own": (
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
        {"failed"},
    ),
    "queues a signal for its parent": (
        "import ctypes, os\nassert ctypes.CDLL(None).sigqueue(os.getppid() or 1, 9, None) == 0",
        {"failed"},
    ),
    "has the kernel signal its parent": (
        "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid() or 1)",
        {"failed"},
    ),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        {"failed"},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_comes_to_nothing(name: str) -> None:
    program, expected = HOSTILE[name]
    outcome = run_python(program, QUICK)
    assert outcome.status in expected, outcome
    assert len(outcome.output) <= 4096


def test_files_outside_cannot_be_deleted_changed_or_made(tmp_path: Path) -> None:
    victim = Path(__file__).parent / "__pycache__"
    victim.mkdir(exist_ok=True)
    victim = victim / f"victim-{os.getpid()}"
    victim.write_text("here")
    try:
        for action in (
            "os.remove(p)",
            "open(p, 'w').write('x')",
            "os.rename(p, p + 'x')",
            "os.chmod(p, 0)",
            "open(p + 'new', 'w')",
        ):
            outcome = run_python(f"import os\np = {str(victim)!r}\n{action}", QUICK)
            assert outcome.status == "failed", (action, outcome)
        assert victim.read_text() == "here"
        assert not Path(f"{victim}new").exists()
    finally:
        victim.unlink()


def test_a_server_on_this_machine_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)", QUICK)
    assert outcome.status == "failed"


def test_the_environment_with_its_keys_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    outcome = run_python("import os\nresult = dict(os.environ)", QUICK, result=True)
    assert outcome.status == "passed"
    assert "s3cret" not in json.dumps(outcome.result)


def test_threads_are_counted_where_the_kernel_counts_them_apart() -> None:
    outcome = run_python(
        "import resource\nresult = resource.getrlimit(resource.RLIMIT_NPROC)", QUICK, result=True
    )
    assert outcome.status == "passed"
    if outcome.confinement == "full" and counts_its_own_processes():
        assert outcome.result == [256, 256]


def test_a_sleeper_is_over_its_time_and_threads_do_not_hold_the_end() -> None:
    assert run_python("import time\ntime.sleep(1000)", Limits(seconds=6)).status == "time"
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()"
    assert run_python(program, QUICK).status == "passed"


def test_nothing_of_a_program_outlives_the_process_that_ran_it(tmp_path: Path) -> None:
    """The parent is killed the hard way while a program sleeps; the program's process ends with it."""
    code = (
        "from stillroom.checks import Limits, run_python\n"
        "run_python('import time\\nname = \"outlives-nobody\"\\ntime.sleep(1000)', Limits(seconds=500))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (children := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert children
        time.sleep(1.0)
        children |= descendants(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))


def descendants(pid: int) -> set[int]:
    """Processes below this one, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# A limit at an address whose low word is nought, which is all of it that a filter compares with a null pointer.
LIMITS_PARENT = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
place = libc.mmap(1 << 32, 4096, 3, 0x32, -1, 0)
assert place == 1 << 32
ctypes.memmove(place, struct.pack("QQ", 0, 0), 16)
assert libc.prlimit(os.getppid(), 0, ctypes.c_void_p(place), None) == 0
"""


def test_where_namespaces_are_forbidden_programs_still_run_and_can_write_no_file() -> None:
    """As in many containers: here in a user namespace whose own limit of further ones is nought."""
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids user namespaces, so every other test of this file shows it")
    code = (
        "from stillroom.checks import Limits, run_python\n"
        "actions = ['pass', \"open('/tmp/x', 'w')\", \"import os; os.remove('/etc/hostname')\", 'import os; os.fork()',\n"
        "           'import os; os.kill(os.getppid(), 9)', 'import socket; socket.socket()',\n"
        "           'import ctypes, os; assert not ctypes.CDLL(None).sigqueue(os.getppid(), 9, None)',\n"
        "           'import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())',\n"
        f"           {LIMITS_PARENT!r}]\n"
        "for action in actions:\n"
        "    outcome = run_python(action, Limits(seconds=60))\n"
        "    print(outcome.confinement.replace(' ', '-'), outcome.status)"
    )
    forbidden = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "-Ur", "bash", "-c", forbidden, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["no-files", "passed", *["no-files", "failed"] * 8], done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_calls_of_another_calling_convention_are_no_way_around() -> None:
    """x32 numbers the same calls anew; the filter refuses them all."""
    program = (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.syscall(0x40000000 + 41, 2, 1, 0) == -1\nresult = ctypes.get_errno()"
    )
    assert run_python(program, QUICK, result=True).result in (1, 38)


CHECKER = """
def polite(answer, reference, messages):
    if "please" in answer:
        return True
    return "no please" if messages else False

def broken(answer, reference, messages):
    return 1 / 0

def odd(answer, reference, messages):
    return 3.5
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_a_checker_of_ones_own_says_right_or_why_not(tmp_path: Path, trusted: bool) -> None:
    (tmp_path / "mine.py").write_text(CHECKER)
    check = load_checker("mine.py:polite", tmp_path, trusted=trusted)
    assert check("yes, please", None, []) is None
    assert check("yes", None, [{"role": "user", "content": "?"}]) == "no please"
    assert check("yes", None, []) == "not right"
    with pytest.raises(Fault, match="ZeroDivisionError"):
        load_checker("mine.py:broken", tmp_path, trusted=trusted)("x", None, [])


def test_a_checker_that_is_not_there_or_says_neither_yes_nor_no_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CHECKER)
    (tmp_path / "bad.py").write_text("def f(:")
    for where in ("mine.py:nobody", "none.py:f", "bad.py:f", "mine.py"):
        for trusted in (True, False):
            with pytest.raises(DataError):
                load_checker(where, tmp_path, trusted=trusted)
    for trusted in (True, False):
        with pytest.raises(Fault, match="float"):
            load_checker("mine.py:odd", tmp_path, trusted=trusted)("x", None, [])
