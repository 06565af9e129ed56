"""What a lesson book costs to open and to read, whatever its size.

    python benchmarks/books.py                          # 10^5, 10^6 and 10^7 tokens: 400 MB of disk, a minute
    python benchmarks/books.py --tokens 1e5 1e8         # 4 GB of disk; 10^8 tokens are 10^6 rows
    python benchmarks/books.py --cold --json books.json # with the files out of the page cache before each opening

Books of synthetic rows of 100 tokens, 80 of them with signals (head + draws of 36 bytes over 32,000 ids, from a made-up
teacher). A few hundred different rows are captured; what distinguishes one row of a book from another is its key alone, so
that writing is bound by the disk. Books are kept in --work and used again.

Each book is measured in a process of its own, on one thread:

    open      milliseconds of Book.open, and of Book.open with the first row read, the median of several
    read      tokens a second of `row` for keys drawn at random, decoded into targets, checksums compared; after all of
              them were read once, but with --cold, which has the disk in it
    own       MiB that the process holds of its own after reading, beyond what it held before opening
    mapped    MiB of the book's files that are mapped and in memory, which the system takes back when it wants to
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stillroom.signals import Book, BookHeader, Row, capture
from stillroom.signals.codec import encode

VOCAB, ROW, SIGNALS, POOL = 32_000, 100, 80, 256
HEADER = BookHeader("synthetic", "none", VOCAB, 1.0, "head+draws", 36, "made up")
OPENINGS = 9


def pool() -> list[bytes]:
    """Different rows as they are on disk."""
    generator, found = torch.Generator().manual_seed(0), []
    mask = torch.arange(ROW) >= ROW - SIGNALS
    for number in range(POOL):
        tokens = torch.randint(0, VOCAB, (ROW,), generator=generator)
        # Some places sure, some not, as in text.
        logits = torch.randn(SIGNALS, VOCAB, generator=generator) * torch.linspace(2, 6, SIGNALS)[:, None]
        signals = capture(logits, keys=torch.arange(SIGNALS) + number * SIGNALS, budget=HEADER.budget)
        found.append(encode(Row(tokens.int(), mask, signals), VOCAB))
    return found


def write(folder: Path, tokens: int) -> None:
    """A book of this many tokens, unless it is there."""
    done = folder.with_suffix(".done")
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    rows, numbers = pool(), random.Random(tokens)
    with Book.create(folder, HEADER) as book:
        for number in range(tokens // ROW):
            # What `append` ends in; hashing and packing a million rows anew would measure something else.
            book._put(numbers.randbytes(16).hex(), rows[number % POOL], SIGNALS)
    done.touch()


def memory(field: str) -> float:
    """MiB that this process holds, by a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def forget(folder: Path) -> None:
    """Put the book's files out of the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(folder: Path, seconds: float, cold: bool) -> dict[str, Any]:
    """The figures of one book."""
    torch.set_num_threads(1)
    book = Book.open(folder)
    first = next(iter(book))
    sample = [key for number, key in enumerate(book) if number % max(1, len(book) // 20_000) == 0]
    rows = len(book)
    del book
    opened, ready = [], []
    for _ in range(OPENINGS):
        if cold:
            forget(folder)
        began = time.perf_counter()
        book = Book.open(folder)
        opened.append(time.perf_counter() - began)
        book.row(first)
        ready.append(time.perf_counter() - began)
    before = memory("RssAnon")
    book = Book.open(folder)
    random.Random(0).shuffle(sample)
    if not cold:  # the disk is not what is measured
        for key in sample:
            book.row(key)
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for key in sample:
            tokens += len(book.row(key).token_ids)
    took = time.perf_counter() - began
    return {
        "tokens": rows * ROW,
        "rows": rows,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "open_ms": statistics.median(opened) * 1e3,
        "open_and_first_row_ms": statistics.median(ready) * 1e3,
        "tokens_per_second": tokens / took,
        "own_mib": memory("RssAnon") - before,
        "mapped_mib": memory("RssFile"),
    }


def main() -> None:
    """Write the books that are missing, then measure each in its own process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--seconds", type=float, default=5.0, help="of random reads")
    parser.add_argument("--cold", action="store_true", help="put files out of the page cache before opening")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/stillroom-books"), help="where books are kept"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds, options.cold)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    print(f"{'tokens':>12} {'MB':>7} {'open':>9} {'+ a row':>9} {'tokens/s':>11} {'own':>9} {'mapped':>10}")
    for tokens in map(int, options.tokens):
        folder = options.work / f"{tokens}"
        write(folder, tokens)
        command = [sys.executable, __file__, "--measure", str(folder), "--seconds", str(options.seconds)]
        done = subprocess.run(
            command + ["--cold"] * options.cold, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        one = json.loads(done.stdout)
        found.append(one)
        print(
            f"{one['tokens']:>12,} {one['bytes'] / 1e6:>7,.0f} {one['open_ms']:>6.1f} ms "
            f"{one['open_and_first_row_ms']:>6.1f} ms {one['tokens_per_second']:>11,.0f} "
            f"{one['own_mib']:>5.1f} MiB {one['mapped_mib']:>6.0f} MiB",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
