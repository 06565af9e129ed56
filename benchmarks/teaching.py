"""How quickly a teacher behind an API is asked, beside what the server's latency allows and beside other clients.

    python benchmarks/teaching.py                      # latencies, peak and memory: a few minutes
    python benchmarks/teaching.py --only peak
    python benchmarks/teaching.py --only torture       # 10,000 requests, a tenth with faults, five kills
    python benchmarks/teaching.py --only stages --prompts 10000 100000 1000000

The server is a process of its own on this machine that answers any request after a fixed time; `alone` is what one request
after the other on one open connection takes. `of possible` is the time that this latency and the concurrency would take over
the time taken, start-up included. `stillroom` is the whole of `teach`: keys looked up, costs counted, answers written and
synced (--work says on which disk). `sequential` is a loop that waits for every answer; `openai` is the official client under
asyncio.gather with as many places; both keep nothing. Memory is the peak of resident memory of a process that asks so many;
`stages` that of one that takes a recipe's file of questions through its stages prompts and teach, and what each prompt adds
to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request as Call
from urllib.request import urlopen

SCENES = ((8, 0.05), (64, 0.1), (256, 0.5))
"""Places in flight and seconds of latency."""
SECONDS = 24.0
"""What a scene would take at best."""


class Quick(asyncio.Protocol):
    """As little HTTP as a client needs to be told the same answer over and over."""

    latency = 0.0
    body = json.dumps(
        {
            "id": "x",
            "choices": [
                {"message": {"role": "assistant", "content": "#### 42 " * 20}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 60, "completion_tokens": 80},
        }
    ).encode()
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            at = head.find(b"content-length:")
            whole = end + 4 + (int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0)
            if len(self.data) < whole:
                return
            self.data = self.data[whole:]
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, self.answer)  # type: ignore[attr-defined]


async def serve(latency: float) -> None:
    """Serve until killed."""
    Quick.latency = latency
    server = await asyncio.get_running_loop().create_server(Quick, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def served(latency: float) -> Iterator[str]:
    """The address of a server with this latency."""
    command = [sys.executable, __file__, "--serve", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def ours(url: str, count: int, places: int, work: Path) -> float:
    """Seconds that `teach` takes."""
    from stillroom.contracts.progress import Meter
    from stillroom.contracts.records import Request, Sampling
    from stillroom.lessons.teach.answered import AnswersFile
    from stillroom.lessons.teach.asking import Asking
    from stillroom.lessons.teach.bill import Bill
    from stillroom.lessons.teach.teaching import Panel, teach
    from stillroom.models.api import ApiModel
    from stillroom.models.teachers import Price

    sampling = Sampling()
    asking = Asking(url, "large", sampling)

    def requests() -> Iterator[Request]:
        for number in range(count):
            yield from asking.requests([{"role": "user", "content": question(number)}], str(number))

    model = ApiModel(url, "large", concurrency=places)
    bill = Bill(Price(models=["*"], input=1, output=2), sampling, limit=1e6)
    out = work / f"answers-{os.getpid()}-{time.time_ns()}.jsonl"
    with AnswersFile(out, writable=True) as file:
        began = time.perf_counter()
        taught = teach(requests(), model, sampling, file, bill, Panel(Meter(), count))
        seconds = time.perf_counter() - began
        assert taught.counts["stop"] == len(file) == count
    model.close()
    out.unlink()
    return seconds


def question(number: int) -> str:
    """A question of the length of GSM8K's."""
    return f"{number}. " + "Natalia sold clips to 48 of her friends in April, and half as many in May. " * 3


def sequential(url: str, count: int, places: int, work: Path) -> float:
    """Seconds of a loop without anything."""
    began = time.perf_counter()
    for number in range(count):
        body = {"model": "large", "messages": [{"role": "user", "content": question(number)}]}
        call = Call(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(call) as response:
            json.load(response)["choices"][0]["message"]["content"]
    return time.perf_counter() - began


def official(url: str, count: int, places: int, work: Path) -> float:
    """Seconds of the official client under asyncio.gather."""
    from openai import AsyncOpenAI

    async def all_of_them() -> float:
        free = asyncio.Semaphore(places)
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:

            async def one(number: int) -> str | None:
                async with free:
                    messages = [{"role": "user", "content": question(number)}]
                    told = await client.chat.completions.create(model="large", messages=messages)  # type: ignore[arg-type]
                    return told.choices[0].message.content

            began = time.perf_counter()
            await asyncio.gather(*map(one, range(count)))
            return time.perf_counter() - began

    return asyncio.run(all_of_them())


def alone(url: str, count: int = 15) -> float:
    """Median seconds of a request where nothing else is asked, over one connection that stays open."""
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port)
    body = json.dumps({"model": "large", "messages": [{"role": "user", "content": question(0)}]})
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request(
            "POST", f"{place.path}/chat/completions", body, {"Content-Type": "application/json"}
        )
        connection.getresponse().read()
        taken.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(taken)


CLIENTS: dict[str, Callable[[str, int, int, Path], float]] = {
    "stillroom": ours,
    "openai": official,
    "sequential": sequential,
}


def latencies(work: Path) -> None:
    """Every scene with every client."""
    print(f"{'places':>6} {'latency':>8} {'alone':>9}  {'client':<12} {'requests/s':>10} {'of possible':>12}")
    for places, latency in SCENES:
        with served(latency) as url:
            real = alone(url)
            for name, client in CLIENTS.items():
                count = 40 if name == "sequential" else round(SECONDS * places / latency)
                seconds = client(url, count, places, work)
                possible = count * real / places / seconds
                print(
                    f"{places:>6} {latency * 1000:>5.0f} ms {real * 1000:>6.1f} ms  {name:<12} "
                    f"{count / seconds:>10,.1f} {possible:>12.3f}",
                    flush=True,
                )


def peak(work: Path, count: int = 20_000) -> None:
    """Requests a second where the server answers at once."""
    print(f"{'places':>6}  {'client':<12} {'requests/s':>10}")
    with served(0.0) as url:
        for places in (64, 256):
            for name in ("stillroom", "openai"):
                amount = count if name == "stillroom" else count // 5
                print(f"{places:>6}  {name:<12} {amount / CLIENTS[name](url, amount, places, work):>10,.0f}")


def memory(work: Path, counts: tuple[int, ...]) -> None:
    """Peak memory of a process that asks so many."""
    with served(0.0) as url:
        for count in counts:
            command = [sys.executable, __file__, "--ask", str(count), "--url", url, "--work", str(work)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print(f"{count:>9,} prompts  {told.strip()}")


def stages(work: Path, counts: tuple[int, ...]) -> None:
    """Peak memory of a process that takes so many questions of a file through the stages prompts and teach."""
    before: tuple[int, float] | None = None
    with served(0.0) as url:
        for count in counts:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                command = [sys.executable, __file__, "--stage", str(count), "--url", url, "--work", folder]
                told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            adds = ""
            if before is not None:
                slope = (told["peak"] - before[1]) / (count - before[0])
                adds = f", {slope:,.0f} bytes a prompt more than with {before[0]:,}"
            before = count, told["peak"]
            seconds = ", ".join(f"{name} {told[name]:,.0f} s" for name in ("prompts", "teach"))
            print(
                f"{count:>9,} prompts  {told['peak'] / 2**20:,.0f} MiB at most{adds}; {seconds}", flush=True
            )


def through_the_stages(count: int, url: str, work: Path) -> None:
    """Take so many questions through prompts and teach, and print the seconds of each and the peak of memory."""
    from stillroom.contracts.loading import build_recipe
    from stillroom.contracts.progress import Progress
    from stillroom.contracts.runfolder import Run
    from stillroom.pipeline import run_pipeline

    with (work / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": question(number)}) + "\n")
    recipe = build_recipe(
        {
            "name": "many",
            "teacher": {"api": url, "model": "large"},
            "student": {"model": "embedded:tickets-teacher"},
            "prompts": [{"file": "questions.jsonl"}],
            "teach": {"signal": {"kind": "none"}, "concurrency": 64},
            "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
        }
    )
    run = Run(work / "run", recipe, work)
    run_pipeline(run, Progress(), until="teach")
    found = {name: run.manifest(name) for name in ("prompts", "teach")}
    assert all(manifest is not None for manifest in found.values())
    assert found["teach"].counts["stop"] == count  # type: ignore[union-attr]
    seconds = {name: manifest.seconds for name, manifest in found.items() if manifest}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, **seconds}))


def torture(work: Path, count: int = 10_000, kills: int = 5, places: int = 64) -> None:
    """Faults and kills: every prompt answered once, none lost, none paid for twice but what was in flight."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from misbehaving import killed_at_random, misbehaving, paid, problems, teach_command

    known = list(problems())
    questions, out, log = work / "torture.jsonl", work / "torture-answers.jsonl", work / "torture-paid.jsonl"
    for path in (out, log):
        path.unlink(missing_ok=True)
    asked = [known[number % len(known)][0] + "\n" * (number // len(known)) for number in range(count)]
    questions.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked), encoding="utf-8")
    moments = sorted(random.sample(range(count // 50, count * 9 // 10), kills))
    with misbehaving(log, faults=0.1, seed=1, huge=2000) as url:
        command = teach_command(questions, url, out, timeout=5, concurrency=places)
        began = time.perf_counter()
        seen = killed_at_random(command, out, moments, dict(os.environ), 3600)
        seconds = time.perf_counter() - began
    lines = list(map(json.loads, out.read_bytes().splitlines()))
    good = Counter(line["key"] for line in lines if line["finish"] == "stop")
    bought = Counter(text for text, _ in paid(log))
    print(f"{count:,} prompts in {seconds:,.0f} s, killed at {', '.join(map(str, seen))} answers")
    print(
        f"answered {len(good):,}, twice {sum(times > 1 for times in good.values())}, lost {count - len(good)}"
    )
    print(
        f"paid for again {sum(bought.values()) - len(bought)}; {kills} kills with {places} in flight at each"
    )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts_known = ["latencies", "peak", "memory", "stages", "torture"]
    parser.add_argument("--only", choices=parts_known, help="one part")
    parser.add_argument("--work", type=Path, help="folder for answers; a temporary one otherwise")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[10_000, 40_000], help="counts for memory and stages"
    )
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--questions", type=int, default=10_000, help="questions of torture")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        if options.ask:
            seconds = ours(options.url, options.ask, 64, work)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{most:,.0f} MiB at most, {options.ask / seconds:,.0f} requests/s")
            return
        if options.stage:
            through_the_stages(options.stage, options.url, work)
            return
        parts: dict[str, Callable[[], None]] = {
            "latencies": lambda: latencies(work),
            "peak": lambda: peak(work),
            "memory": lambda: memory(work, tuple(options.prompts)),
            "stages": lambda: stages(work, tuple(options.prompts)),
            "torture": lambda: torture(work, options.questions),
        }
        for name in [options.only] if options.only else ["latencies", "peak", "memory"]:
            parts[name]()


if __name__ == "__main__":
    main()
