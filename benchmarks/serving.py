"""Many streaming clients at `stillroom serve` and at llama.cpp's server alone: tokens a second, errors, leaks.

    python benchmarks/serving.py
    python benchmarks/serving.py --clients 64 --seconds 300 --rounds 1 --json serving.json

A Llama of random weights, 96 M parameters, as Q8_0. Clients in a process of their own ask one streamed answer after the
other, of --tokens tokens to one of sixteen questions, for --seconds: first llama.cpp's server alone, then the front before
the same server, --rounds times in turn. Counted are the tokens of answers that came whole. A connection for each request:
llama.cpp's server closes under load what it had kept open, and a client that uses it again sees an error. What the front
adds to one request is the difference of medians of answers of one token, asked one after the other of both in turn. Memory
and open files are the front's own, in a process of its own as under `stillroom serve`, before the first round and after
the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stillroom.gguf import export
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.serving import Backend, create_app

MODEL = "random"
QUESTIONS = [f"Question {number}: tell me all about the number {number**3}." for number in range(16)]


@dataclass
class Load:
    """What the clients of one round saw."""

    tokens: int = 0
    answers: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, of whole answers."""
        return self.tokens / self.seconds


def random_model(folder: Path, data: Path) -> Path:
    """A Q8_0 file of some 100 M random weights."""
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260k" / "hf")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=11,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters", flush=True)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    export(folder / "hf", folder / "model.gguf", "Q8_0")
    return folder / "model.gguf"


def front(backend: str, pipe: Any) -> None:
    """The front in a process of its own; sends its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    pipe.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
    app = create_app({MODEL: Backend(backend)})
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


def load(url: str, clients: int, seconds: float, tokens: int, pipe: Any) -> None:
    """The clients, in a process of their own; sends a Load."""
    pipe.send(asyncio.run(_load(url, clients, seconds, tokens)))


async def _load(url: str, clients: int, seconds: float, tokens: int) -> Load:
    found, end = Load(), time.perf_counter() + seconds
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout
    ) as session:

        async def client(number: int) -> None:
            asked = number
            while time.perf_counter() < end:
                try:
                    await _ask(session, url, QUESTIONS[asked % len(QUESTIONS)], tokens, found, end)
                except Exception as error:
                    found.errors.append(f"{type(error).__name__}: {error}")
                asked += 1

        started = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        found.seconds = time.perf_counter() - started
    return found


async def _ask(
    session: aiohttp.ClientSession, url: str, question: str, tokens: int, found: Load, end: float
) -> None:
    """One streamed answer, read to its end."""
    started, first, pieces, done = time.perf_counter(), 0.0, 0, False
    async with session.post(f"{url}/v1/chat/completions", json=body(question, tokens, stream=True)) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {(await answer.text())[:200]}")
        async for line in answer.content:
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: "):
                if b'"error"' in line:
                    raise RuntimeError(line.decode()[:200])
                first = first or time.perf_counter() - started
                pieces += 1
    if not done:
        raise RuntimeError("the stream broke")
    found.tokens, found.answers = found.tokens + tokens, found.answers + 1
    found.first.append(first)


def body(question: str, tokens: int, stream: bool) -> dict[str, Any]:
    """A request whose answer has exactly so many tokens."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


async def added(urls: dict[str, str], requests: int) -> dict[str, float]:
    """Median seconds of an answer of one token at each address, asked in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for number in range(requests + 10):
            for name, url in urls.items():
                started = time.perf_counter()
                async with session.post(
                    f"{url}/v1/chat/completions", json=body(QUESTIONS[0], 1, stream=False)
                ) as answer:
                    await answer.read()
                if number >= 10:
                    seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def state(pid: int) -> dict[str, float]:
    """Resident MiB and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {"MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": len(os.listdir(f"/proc/{pid}/fd"))}


def in_process(target: Any, *arguments: Any) -> tuple[Any, Any]:
    """A function in a process of its own, and what it sends first."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    return process, here.recv()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds stories260k")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="of a round of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument(
        "--parallel", type=int, default=8, help="conversations that llama.cpp answers at once"
    )
    parser.add_argument("--requests", type=int, default=300, help="for what the front adds")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        file = random_model(Path(scratch), args.data)
        with LlamaServer(file, n_ctx=512, parallel=args.parallel, alias=MODEL) as server:
            process, url = in_process(front, server.url)
            urls = {"llama.cpp alone": server.url, "stillroom serve": url}
            rounds: dict[str, list[Load]] = {name: [] for name in urls}
            before = state(process.pid)
            for number in range(args.rounds):
                for name, address in urls.items():
                    _, found = in_process(load, address, args.clients, args.seconds, args.tokens)
                    rounds[name].append(found)
                    print(
                        f"round {number + 1}, {name}: {found.rate:.0f} tokens/s, {found.answers} answers, "
                        f"{len(found.errors)} errors {found.errors[:1] or ''}",
                        flush=True,
                    )
            after = state(process.pid)
            alone = asyncio.run(added(urls, args.requests))
            process.terminate()
            process.join()
    rates = {name: statistics.median(found.rate for found in loads) for name, loads in rounds.items()}
    first = {
        name: statistics.median(value for found in loads for value in found.first)
        for name, loads in rounds.items()
    }
    ratio = [b.rate / a.rate for a, b in zip(*rounds.values(), strict=True)]
    print(
        f"\n| {args.clients} clients, {args.tokens} tokens each | tokens/s | first token, s | errors | one token alone, ms |"
    )
    print("|---|---|---|---|---|")
    for name, loads in rounds.items():
        errors = sum(len(found.errors) for found in loads)
        print(f"| {name} | {rates[name]:.0f} | {first[name]:.2f} | {errors} | {1000 * alone[name]:.2f} |")
    print(
        f"\nratio by round {', '.join(f'{value:.3f}' for value in ratio)}: median {statistics.median(ratio):.3f}"
    )
    for when, figures in (("before", before), ("after", after)):
        print(f"the front {when}: {figures['MiB']:.0f} MiB, {figures['files']:.0f} open files")
    if args.json:
        everything = {name: [asdict(found) for found in loads] for name, loads in rounds.items()}
        args.json.write_text(
            json.dumps({"rounds": everything, "alone": alone, "before": before, "after": after})
        )


if __name__ == "__main__":
    main()
