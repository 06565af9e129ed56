"""A teacher that misbehaves on a schedule, in a process of its own; its answers are those of GSM8K.

    python tests/misbehaving.py --log paid.jsonl --faults 0.1 --seed 1

Asked to compare two answers it prefers the longer one, of equally long ones the first that it reads, and mumbles where
one has as many characters as a multiple of seven. It prints its address. Every whole answer that it has sent is a line of
the log: the question and its seed, so that a test can tell what was paid for and how often.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"
FAULTS = {
    "429 with Retry-After": 4,
    "429": 4,
    "500": 4,
    "slow": 4,
    "cut before the answer": 3,
    "cut in the answer": 3,
    "half JSON": 3,
    "web page": 3,
    "hang": 1,
}
"""Faults and how often each comes, of all faults. Every answer has the same id, beside these."""


def problems() -> Iterator[tuple[str, str]]:
    """Question and answer of every problem of GSM8K, or of sums made here where it is not at hand."""
    files = [GSM8K / "train.jsonl.gz", GSM8K / "test.jsonl.gz"]
    if not all(path.is_file() for path in files):
        yield from ((f"What is {n} and {n + 7} together?", f"#### {2 * n + 7}") for n in range(8792))
        return
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in map(json.loads, file):
                yield line["question"], line["answer"]


def preference(asked: str) -> str | None:
    """What it says as a judge; None where it is not asked to be one."""
    answers = re.findall(r'<answer name="[AB]">\n(.*?)\n</answer>', asked, re.S)
    if not answers:
        return None
    one, other = map(len, answers)
    return "Hard to say." if one % 7 == 0 or other % 7 == 0 else f"Better: {'B' if other > one else 'A'}"


class Misbehaving:
    """The server's side: answers, faults, and a log of what was sent whole."""

    def __init__(self, log: Path, share: float, seed: int, hang: float, huge: int) -> None:
        self.answers = dict(problems())
        self.log = log.open("a", buffering=1)
        self.share, self.chance, self.hang, self.huge = share, random.Random(seed), hang, huge
        self.asked = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One request: an answer or a fault."""
        body = await request.json()
        self.asked += 1
        if self.huge and self.asked % self.huge == 0:
            return await self.endless(request)
        if self.chance.random() < self.share:
            fault = self.chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            return await self.fail(fault, request, body)
        return await self.send(request, body)

    def text(self, body: dict[str, Any]) -> bytes:
        asked = body["messages"][-1]["content"]
        answer = preference(asked) or self.answers.get(asked, "I do not know that one.")
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 60, "completion_tokens": len(answer) // 4}
        return json.dumps({"id": "chatcmpl-1", "choices": [choice], "usage": usage}).encode()

    async def send(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.Response(body=self.text(body), content_type="application/json")
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            return response  # the client has gone: it has no answer, and pays for none
        self.log.write(json.dumps([body["messages"][-1]["content"], body["seed"]]) + "\n")
        return response

    async def fail(self, fault: str, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        text = self.text(body)
        match fault:
            case "429 with Retry-After":
                return web.Response(status=429, headers={"Retry-After": "0.05"}, text="too many")
            case "429":
                return web.json_response({"error": {"message": "too many"}}, status=429)
            case "500":
                return web.Response(status=500, text="Internal Server Error")
            case "slow":
                await asyncio.sleep(0.2)
                return await self.send(request, body)
            case "cut before the answer":
                request.transport.abort()
            case "cut in the answer":
                response = web.StreamResponse(headers={"Content-Length": str(len(text))})
                await response.prepare(request)
                await response.write(text[: len(text) // 2])
                request.transport.close()
                return response
            case "half JSON":
                return web.Response(body=text[: len(text) // 2], content_type="application/json")
            case "web page":
                return web.Response(text="<html>Please log in</html>", content_type="text/html")
            case "hang":
                await asyncio.sleep(self.hang)
        return web.Response(status=500)

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(100):
                await response.write(b" " * (1 << 20))
        except ConnectionError:
            pass  # the client has had enough
        return response


async def serve(options: argparse.Namespace) -> None:
    """Serve until killed."""
    side = Misbehaving(options.log, options.faults, options.seed, options.hang, options.huge)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", side.chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


@contextmanager
def misbehaving(log: Path, **settings: float) -> Iterator[str]:
    """The address of such a server in a process of its own."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, __file__, f"--log={log}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def paid(log: Path) -> list[tuple[str, int]]:
    """Question and seed of every whole answer that was sent."""
    return [tuple(json.loads(line)) for line in log.read_bytes().splitlines()] if log.exists() else []


def teach_command(questions: Path, url: str, out: Path, *, timeout: float, concurrency: int) -> list[str]:
    """The command that has a file of questions answered by the server at this address."""
    command = [sys.executable, "-m", "stillroom", "teach", str(questions), "--model", "large", "--api", url]
    settings = ["--set", f"teach.timeout={timeout}", "--set", f"teach.concurrency={concurrency}"]
    return [*command, "--out", str(out), *settings]


def killed_at_random(
    command: list[str], out: Path, moments: list[int], environment: dict[str, str], limit: float = 300
) -> list[int]:
    """Run a command again and again: killed (-9) once `out` has so many lines, for each moment; then to its end.

    Returns:
        how many lines there were at each kill.
    """
    seen = []
    for moment in moments:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        waited = threading.Event()
        while process.poll() is None and lines_in(out) < moment:
            waited.wait(0.02)
        seen.append(lines_in(out))
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.kill()
        process.wait()
        timer.cancel()
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return seen


def lines_in(path: Path) -> int:
    """Whole lines of a file, 0 where it is not there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="file of whole answers")
    parser.add_argument("--faults", type=float, default=0.1, help="share of requests that meet a fault")
    parser.add_argument("--seed", type=int, default=0, help="seeds the schedule")
    parser.add_argument("--hang", type=float, default=3600, help="seconds that a hanging request hangs")
    parser.add_argument("--huge", type=int, default=0, help="every so many requests, an answer of 100 MiB")
    asyncio.run(serve(parser.parse_args()))
