"""Near-duplicates among a hundred thousand texts: how quickly they are found, how many, and how many wrongly.

    python benchmarks/deduplicating.py                       # 100,000 texts, two minutes
    python benchmarks/deduplicating.py --texts 1000000       # the corpus is cut into overlapping pieces then

Texts: the questions of banking77 and gsm8k and pieces of the corpus peps (all under --data), shuffled. A tenth are
planted: copies of an earlier text with characters changed, one at a time, until the next change would take the Jaccard
similarity of their shingles under 0.8. Found: planted copies that are dropped. Wrongly dropped: texts that are dropped
for one to which their exact similarity is under 0.8. Real questions that repeat each other are dropped too, and told apart.

One process, one thread. Texts a minute are over `NearDuplicates.add` alone, the median of --runs; for each text, what the
whole takes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from stillroom.stats.minhash import NearDuplicates, jaccard, shingles

DATA = Path(__file__).parents[2] / "shared" / "data"
PLANTED = 0.1
THRESHOLD = 0.8
PIECE = 240


def originals(data: Path, count: int) -> list[str]:
    """Different real texts, shuffled."""
    found = {text for text in _questions(data) if len(text) >= 40}
    corpus = "".join(_corpus(data))
    step = min(PIECE, max(1, (len(corpus) - PIECE) // max(count - len(found), 1)))
    for start in range(0, len(corpus) - PIECE, step):
        if len(found) >= count:
            break
        found.add(corpus[start : start + PIECE])
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts[:count]


def _questions(data: Path) -> Iterator[str]:
    for path in sorted((data / "banking77").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))
    for name in ("train", "test"):
        with gzip.open(data / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["question"] for line in file)


def _corpus(data: Path) -> Iterator[str]:
    for path in sorted((data / "peps").rglob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            yield file.read()


def copy_of(text: str, draw: random.Random) -> str:
    """The text with characters changed until one more would make it another text."""
    whole, letters = shingles(text), list(text)
    for place in draw.sample(range(len(letters)), len(letters)):
        before, letters[place] = letters[place], draw.choice("abcdefghijklmnopqrstuvwxyz")
        if jaccard(whole, shingles("".join(letters))) < THRESHOLD:
            letters[place] = before
            break
    return "".join(letters)


def planted(texts: list[str], count: int) -> list[tuple[str, int | None]]:
    """Originals, and copies behind what they copy: text and the place of its original in the list."""
    draw = random.Random(1)
    copies = int(count * PLANTED)
    found: list[tuple[str, int | None]] = [(text, None) for text in texts[: count - copies]]
    for number in draw.sample(range(len(found)), copies):
        found.append((copy_of(found[number][0], draw), number))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    texts = originals(given.data, given.texts)
    lines = planted(texts, len(texts))
    rates = []
    for _ in range(given.runs):
        finder = NearDuplicates(THRESHOLD)
        began = time.perf_counter()
        drops = [finder.add(text) for text, _ in lines]
        rates.append(60 * len(lines) / (time.perf_counter() - began))
        finder.close()
    copies = [drop for drop, (_, source) in zip(drops, lines, strict=True) if source is not None]
    missed = sum(drop is None for drop in copies)
    dropped = [(text, drop) for drop, (text, _) in zip(drops, lines, strict=True) if drop is not None]
    wrong = sum(jaccard(shingles(text), shingles(lines[drop][0])) < THRESHOLD for text, drop in dropped)
    own = sum(drop is not None for drop, (_, source) in zip(drops, lines, strict=True) if source is None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mean = statistics.mean(len(text) for text, _ in lines)
    print(f"{len(lines):,} texts of {mean:.0f} characters, {len(copies):,} of them planted copies")
    print(f"{statistics.median(rates):,.0f} texts a minute ({', '.join(f'{rate:,.0f}' for rate in rates)})")
    print(f"planted copies found {1 - missed / len(copies):.2%}, {missed} missed")
    print(f"wrongly dropped {wrong}; originals that repeat another one {own}; peak {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
