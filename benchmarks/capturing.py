"""What asking a teacher for its signals costs beside running it: capture into a lesson book against the bare forward pass.

    python benchmarks/capturing.py                       # teachers of 100 M and 180 M parameters, about ten minutes
    python benchmarks/capturing.py --only 32k --json capturing.json
    python benchmarks/capturing.py --tiny                # does it run? its figures mean nothing

Random weights, in the number format that a local teacher has here (bfloat16 where the processor is quick at it), over
rows of 512 random tokens, every one but the first with a signal. A random model is flat, as no teacher is: the gain of
its last norm is raised until its logits spread as those of one do (standard deviation 4).

    bare        model(input_ids).logits in batches of 4 and of 16 rows; the faster counts
    capture     what `stillroom teach` does: texts scored by a local teacher, the signals of 36 bytes (head + draws)
                found, packed and written to a book on disk, with its checksums

Each is measured in a process of its own, after one batch that does not count; the median of --runs, alternating.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.models.local import LocalModel
from stillroom.models.rendering import Rendered
from stillroom.signals import Book, BookHeader, capture, row_key, token_keys

SPREAD = 4.0
BATCHES = (4, 16)


@dataclass(frozen=True)
class Size:
    """Shapes of a teacher, and the rows that it reads."""

    vocab: int
    hidden: int
    layers: int
    rows: int
    tokens: int


SIZES = {
    "32k": Size(32_000, 768, 8, 32, 512),
    "152k": Size(151_936, 768, 7, 16, 512),
}
TINY = {"tiny": Size(512, 64, 2, 32, 32)}


def make(size: Size, folder: Path) -> None:
    """A teacher of random weights, and a tokenizer that nothing goes through."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        logits = model(torch.randint(3, size.vocab, (1, 128))).logits
        model.model.norm.weight *= SPREAD / logits.std()
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(size.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="w0",
        eos_token="w2",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    ).save_pretrained(folder)


def bare(model: LocalModel, ids: Tensor, batch: int) -> Iterator[int]:
    with torch.no_grad():
        for rows in ids.split(batch):
            model.model(input_ids=rows, use_cache=False)
            yield rows.numel()


def captured(model: LocalModel, ids: Tensor, batch: int) -> Iterator[int]:
    header = BookHeader("benchmark", "", model.vocab_size, 1.0, "head+draws", 36, "random weights")
    mask = torch.arange(ids.shape[1]) > 0
    places = mask.nonzero().flatten()
    rows = [Rendered(row, mask.tolist()) for row in ids.tolist()]
    with tempfile.TemporaryDirectory() as folder, Book.create(Path(folder) / "book", header) as book:
        for number, (row, logits) in enumerate(zip(rows, model.logits(rows), strict=True), 1):
            key = row_key(header.tokenizer, torch.tensor(row.ids), mask)
            signals = capture(logits, keys=token_keys(key, places), budget=header.budget)
            book.append(torch.tensor(row.ids), mask, signals)
            if number == len(rows):
                book.close()
            if not number % batch:
                yield batch * ids.shape[1]


VARIANTS = {"bare": bare, "capture": captured}


def measure(folder: Path, size: Size, variant: str, batch: int) -> dict[str, float]:
    """Tokens a second of one variant, in this process."""
    model = LocalModel(folder, batch_size=batch)
    torch.manual_seed(1)
    ids = torch.randint(3, size.vocab, (size.rows, size.tokens))
    sum(VARIANTS[variant](model, ids[:batch], batch))
    began = time.perf_counter()
    tokens = sum(VARIANTS[variant](model, ids, batch))
    seconds = time.perf_counter() - began
    return {"tokens a second": tokens / seconds, "parameters": model.parameters}


def compare(name: str, size: Size, given: argparse.Namespace) -> dict[str, float]:
    """Each variant, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        make(size, Path(folder))
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(given.runs):
            for variant in VARIANTS:
                for batch in BATCHES:
                    run = _run(folder, name, variant, batch, given)
                    found.setdefault((variant, batch), []).append(run)
    speed = {key: statistics.median(run["tokens a second"] for run in runs) for key, runs in found.items()}
    best = {variant: max(v for (kind, _), v in speed.items() if kind == variant) for variant in VARIANTS}
    parameters = found["bare", BATCHES[0]][0]["parameters"]
    share = best["capture"] / best["bare"]
    print(f"{name}: {parameters / 1e6:.0f} M parameters, vocabulary {size.vocab:,}")
    for (variant, batch), value in speed.items():
        print(f"  {variant:8} {batch:3} rows {value:10,.0f} tokens a second")
    print(f"  capture goes at {share:.3f} of the bare forward pass", flush=True)
    return {"parameters": parameters, **best, "share": share}


def _run(folder: str, name: str, variant: str, batch: int, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--folder", folder, "--size", name, "--variant", variant]
    command += ["--batch", str(batch), *(["--tiny"] if given.tiny else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", help="teachers whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    for option in ("--folder", "--size", "--variant", "--batch"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = TINY if given.tiny else SIZES
    if given.variant:
        found = measure(Path(given.folder), sizes[given.size], given.variant, int(given.batch))
        print(json.dumps(found))
        return
    result = {name: compare(name, size, given) for name, size in sizes.items() if (given.only or "") in name}
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
