"""Tokens a second and memory of training a student: bare loops, transformers, TRL, and this package.

    python benchmarks/training.py                        # 12 M teacher, 2 M student, 4 x 512 tokens, vocabulary 32,000
    python benchmarks/training.py --runs 3 --threads 2 --json training.json
    python benchmarks/training.py --size tiny            # does every variant run?

Each variant runs in a process of its own, once with the C library's allocator as it is and once with it tuned to keep
what it was given (`MALLOC_MMAP_MAX_=0`, `MALLOC_TRIM_THRESHOLD_` large). All train the same student on the same rows
of random tokens, every token but the first predicted, with AdamW, bfloat16 where the size says so. Trainers log every
ten steps and write a checkpoint in the middle; their time holds both. The book's signals are captured from the
teacher before the clock starts; TRL's gradient checkpointing, on by default, is off. Time is the median over the runs
of the mean step after warm-up; memory is what resident memory rises by from before the first step to its peak.
`x bare` compares with the bare loop at its best allocator settings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

WARM = 3
ALLOCATORS = {
    "as it is": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
}


@dataclass(frozen=True)
class Size:
    """Shapes of one comparison: hidden width and layers of both models, rows and their tokens, steps after warm-up."""

    vocab: int
    teacher: tuple[int, int]
    student: tuple[int, int]
    rows: int
    tokens: int
    bfloat16: bool
    steps: int


SIZES = {
    "tiny": Size(512, (64, 2), (32, 1), 4, 32, False, 4),
    "small": Size(32_000, (256, 4), (64, 2), 4, 512, True, 10),
    "large": Size(151_936, (512, 8), (256, 4), 4, 512, True, 5),
}


class Work:
    """Student, teacher and rows of one variant, and the clock over its steps."""

    def __init__(self, size: Size) -> None:
        self.size, self.total = size, WARM + size.steps
        self.folder = Path(tempfile.mkdtemp(prefix="stillroom-training-"))
        random = np.random.default_rng(0)
        self.ids = random.integers(3, size.vocab, (self.total * size.rows, size.tokens))
        self.student = _model(size, *size.student, seed=1)
        self.stamps: list[float] = []
        self.resident = 0

    def teacher(self) -> LlamaForCausalLM:
        """The teacher in the precision of training, frozen."""
        model = _model(self.size, *self.size.teacher, seed=2).eval().requires_grad_(False)
        return model.bfloat16() if self.size.bfloat16 else model

    def batches(self) -> list[torch.Tensor]:
        return list(torch.from_numpy(self.ids).split(self.size.rows))

    def begin(self) -> None:
        """Everything is made; the first step comes next."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
        self.resident = _memory("VmRSS")
        self.stamps = [time.perf_counter()]

    def step_done(self) -> None:
        self.stamps.append(time.perf_counter())

    def figures(self) -> dict[str, float]:
        """Seconds a step after warm-up, tokens a second, and bytes; called when training has ended."""
        assert len(self.stamps) == self.total + 1, (
            f"{len(self.stamps) - 1} steps were taken, not {self.total}"
        )
        seconds = (time.perf_counter() - self.stamps[WARM]) / self.size.steps
        tokens = self.size.rows * self.size.tokens
        return {
            "seconds": seconds,
            "tokens a second": tokens / seconds,
            "extra": _memory("VmHWM") - self.resident,
            "peak": _memory("VmHWM"),
        }

    def arguments(self, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
        """A trainer's arguments, the same for each."""
        return kind(
            output_dir=str(self.folder),
            max_steps=self.total,
            per_device_train_batch_size=self.size.rows,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            bf16=self.size.bfloat16,
            use_cpu=True,
            logging_steps=10,
            save_steps=WARM + self.size.steps // 2,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            **more,
        )


class Clock(TrainerCallback):
    """A trainer's steps, stamped."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.work.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.work.step_done()


def _model(size: Size, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        num_key_value_heads=max(hidden // 64, 1),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


# The variants.


def bare(work: Work, live: bool) -> None:
    """A loop of a few lines over full logits: the limit of code that holds them."""
    teacher = work.teacher() if live else None
    optimiser = torch.optim.AdamW(work.student.parameters(), lr=1e-4, fused=True)
    work.student.train()
    work.begin()
    for ids in work.batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=work.size.bfloat16):
            logits = work.student(input_ids=ids, use_cache=False).logits[:, :-1]
            if teacher is None:
                loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            else:
                with torch.no_grad():
                    above = teacher(input_ids=ids, use_cache=False).logits[:, :-1]
                log_q, log_p = (x.flatten(0, 1).float().log_softmax(-1) for x in (logits, above))
                loss = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(work.student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        work.step_done()


def transformers_trainer(work: Work) -> None:
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(work.ids)]
    Trainer(work.student, work.arguments(), train_dataset=rows, callbacks=[Clock(work)]).train()


def trl_sft(work: Work) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        work.student,
        work.arguments(SFTConfig, max_length=work.size.tokens, gradient_checkpointing=False),
        train_dataset=Dataset.from_dict({"input_ids": work.ids.tolist()}),
        processing_class=_tokenizer(work.size.vocab),
        callbacks=[Clock(work)],
    ).train()


def trl_gkd(work: Work) -> None:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        whole = torch.ones_like(ids)
        begin = {"prompts": ids[:, :1], "prompt_attention_mask": whole[:, :1]}
        return {"input_ids": ids, "attention_mask": whole, "labels": ids, **begin}

    GKDTrainer(
        work.student,
        work.teacher(),
        work.arguments(
            GKDConfig, max_length=work.size.tokens, gradient_checkpointing=False, lmbda=0.0, beta=0.0
        ),
        data_collator=batch,
        train_dataset=Dataset.from_dict({"input_ids": work.ids.tolist()}),
        processing_class=_tokenizer(work.size.vocab),
        callbacks=[Clock(work)],
    ).train()


def ours(work: Work, live: bool) -> None:
    from stillroom.training.batches import MemoryRows, RowSource, StepPlan
    from stillroom.training.callbacks import MetricsFile, WholeCheckpoints
    from stillroom.training.objective import Objective
    from stillroom.training.trainer import DistillationTrainer

    teacher = work.teacher()
    mask = np.arange(work.size.tokens) > 0
    rows: RowSource = MemoryRows([(ids, mask) for ids in work.ids]) if live else _book(work, teacher, mask)
    plan = StepPlan(
        rows.lengths, batch_size=work.size.rows, micro_batch_size=work.size.rows, steps=work.total, seed=0
    )
    trainer = DistillationTrainer(
        work.student,
        work.arguments(remove_unused_columns=False),
        rows=rows,
        plan=plan,
        objective=Objective(),
        teacher=teacher if live else None,
        callbacks=[MetricsFile(work.folder / "metrics.jsonl"), WholeCheckpoints(), Clock(work)],
    )
    del teacher
    trainer.train()
    trainer.release()


def _book(work: Work, teacher: LlamaForCausalLM, mask: np.ndarray) -> Any:
    from stillroom.signals import Book, BookHeader, capture, row_key, token_keys
    from stillroom.training.bookrows import BookRows

    # A random model is flat, as no teacher is: its logits are spread until it is about as sure as one.
    header = BookHeader("benchmark", "", work.size.vocab, 1.0, "head+draws", 36, "random weights")
    places = torch.arange(1, work.size.tokens)
    keys = []
    with torch.no_grad(), Book.create(work.folder / "book", header) as book:
        for ids in torch.from_numpy(work.ids):
            logits = teacher(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            logits *= 4 / logits.std(-1, keepdim=True)
            key = row_key(header.tokenizer, ids, torch.from_numpy(mask))
            keys.append(
                book.append(ids, torch.from_numpy(mask), capture(logits, keys=token_keys(key, places)))
            )
    lengths = np.full(len(keys), work.size.tokens)
    return BookRows(Book.open(work.folder / "book"), keys, lengths)


def _tokenizer(vocab: int) -> Any:
    """A tokenizer of this many words, which TRL asks for and no row goes through."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2")


VARIANTS: dict[str, Callable[[Work], None]] = {
    "bare loop": lambda work: bare(work, live=False),
    "bare loop, live teacher": lambda work: bare(work, live=True),
    "transformers Trainer": transformers_trainer,
    "TRL SFTTrainer": trl_sft,
    "TRL GKDTrainer": trl_gkd,
    "ours, live teacher": lambda work: ours(work, live=True),
    "ours, from a book": lambda work: ours(work, live=False),
}


def measure(variant: str, size: Size) -> dict[str, float]:
    """One variant, in this process."""
    work = Work(size)
    try:
        VARIANTS[variant](work)
        return work.figures()
    finally:
        shutil.rmtree(work.folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument(
        "--only", action="append", help="variants whose name holds this; the bare loop runs anyway"
    )
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one alone, in this process")
    given = parser.parse_args()
    if given.variant:
        torch.set_num_threads(given.threads)
        print(json.dumps(measure(given.variant, SIZES[given.size])))
        return
    found = _compare(given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def _compare(given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    size = SIZES[given.size]
    print(
        f"{given.size}: {size.rows} x {size.tokens} tokens, vocabulary {size.vocab:,}, teacher {size.teacher}, "
        f"student {size.student} (width, layers), {'bfloat16' if size.bfloat16 else 'float32'}, {given.threads} "
        f"threads, {size.steps} steps after {WARM}, median of {given.runs}\n"
    )
    wanted = [
        v for v in VARIANTS if v == "bare loop" or not given.only or any(word in v for word in given.only)
    ]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(given.runs):  # in turn, so that what the machine does meanwhile falls on all
        for variant in wanted:
            for allocator, settings in ALLOCATORS.items():
                if run := _run(variant, settings, given):
                    runs.setdefault((variant, allocator), []).append(run)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (variant, allocator), some in runs.items():
        row = {key: statistics.median(run[key] for run in some) for key in some[0]}
        found.setdefault(variant, {})[allocator] = row
    if "bare loop" not in found:
        sys.exit("the bare loop does not run, so there is nothing to compare with")
    best = min(found["bare loop"].values(), key=lambda row: row["seconds"])
    print(f"{'':26}{'allocator':10}{'s a step':>10}{'tokens/s':>10}{'x bare':>8}{'memory':>12}{'x bare':>8}")
    for variant, rows in found.items():
        for allocator, row in rows.items():
            print(
                f"{variant:26}{allocator:10}{row['seconds']:10.3f}{row['tokens a second']:10,.0f}"
                f"{row['seconds'] / best['seconds']:8.2f}{row['extra'] / 2**20:8,.0f} MiB"
                f"{row['extra'] / max(best['extra'], 1):8.2f}"
            )
    return found


def _run(variant: str, settings: dict[str, str], given: argparse.Namespace) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--variant", variant, "--size", given.size]
    command += ["--threads", str(given.threads)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | settings
    environment |= {
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{variant} does not run: {(done.stderr.strip().splitlines() or ['?'])[-1][:100]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
