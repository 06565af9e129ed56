"""Time and memory of one distillation loss, forward and backward: ours, others', and the bare matrix products.

    python benchmarks/losses.py                       # every size that this machine can hold
    python benchmarks/losses.py --size small --runs 9 --threads 2
    python benchmarks/losses.py --device cuda --json losses.json

Each variant runs in a process of its own, the sizes and the seed being the same. Time is the median of the runs after
one that is not counted. Memory is what the first run takes at its peak beyond inputs and gradients, once a run over a
few columns has loaded the libraries' code; gradients count in the dtype in which they are summed, which for ours is
float32 whatever comes in. The bare products are the limit: the
student's logits and the two products of its gradients, chunk by chunk, and for a live teacher its logits too, with
nothing computed from them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256


@dataclass(frozen=True)
class Size:
    """Shapes of one comparison."""

    tokens: int
    vocab: int
    student: int
    teacher: int
    dtype: torch.dtype


SIZES = {
    "small": Size(1024, 32768, 512, 1024, torch.float32),
    "large": Size(1024, 151936, 896, 1536, torch.bfloat16),
}


class Inputs:
    """Hidden states and heads of both models, with logits as spread as those of a trained model."""

    def __init__(self, size: Size, device: str) -> None:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=random) * scale).to(device, size.dtype)

        self.size = size
        self.student_hidden = normal(size.tokens, size.student).requires_grad_()
        self.student_weight = normal(size.vocab, size.student, scale=3 * size.student**-0.5).requires_grad_()
        self.teacher_hidden = normal(size.tokens, size.teacher)
        self.teacher_weight = normal(size.vocab, size.teacher, scale=3 * size.teacher**-0.5)

    def gradient_bytes(self, itemsize: int) -> int:
        return itemsize * (self.student_hidden.numel() + self.student_weight.numel())


def bare_products(inputs: Inputs, live: bool) -> Callable[[], None]:
    def run() -> None:
        hidden, weight = inputs.student_hidden.detach(), inputs.student_weight.detach()
        hidden_slope, weight_slope = torch.zeros_like(hidden), torch.zeros_like(weight)
        for start in range(0, inputs.size.tokens, CHUNK):
            piece = slice(start, start + CHUNK)
            logits = hidden[piece] @ weight.T
            if live:
                inputs.teacher_hidden[piece] @ inputs.teacher_weight.T
            hidden_slope[piece] = logits @ weight
            weight_slope.addmm_(logits.T, hidden[piece])

    return run


def dense(inputs: Inputs) -> Callable[[], None]:
    def run() -> None:
        student = F.linear(inputs.student_hidden, inputs.student_weight).float().log_softmax(-1)
        with torch.no_grad():
            teacher = F.linear(inputs.teacher_hidden, inputs.teacher_weight).float().log_softmax(-1)
        F.kl_div(student, teacher, reduction="batchmean", log_target=True).backward()

    return run


def trl(inputs: Inputs) -> Callable[[], None]:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def run() -> None:
        loss, *_ = _chunked_divergence_loss(
            inputs.student_hidden[None],
            inputs.teacher_hidden[None],
            inputs.student_weight,
            inputs.teacher_weight,
            torch.ones(1, inputs.size.tokens, dtype=torch.int64, device=inputs.student_hidden.device),
            beta=0.0,
        )
        loss.backward()

    return run


def liger(inputs: Inputs) -> Callable[[], None]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(beta=0.0, weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
    labels = torch.zeros(inputs.size.tokens, dtype=torch.int64, device=inputs.student_hidden.device)

    def run() -> None:
        loss(
            inputs.student_hidden,
            inputs.student_weight,
            inputs.teacher_hidden,
            inputs.teacher_weight,
            labels,
        ).backward()

    return run


def ours(inputs: Inputs, sparse: bool) -> Callable[[], None]:
    from stillroom.losses import TeacherHead, fused_linear_divergence

    teacher: Any = TeacherHead(inputs.teacher_hidden, inputs.teacher_weight)
    if sparse:
        teacher = _sparse_targets(inputs)

    def run() -> None:
        fused_linear_divergence(
            inputs.student_hidden, inputs.student_weight, teacher, chunk_tokens=CHUNK
        ).loss.backward()

    return run


def _sparse_targets(inputs: Inputs) -> Any:
    from stillroom.losses import SparseTargets
    from stillroom.signals.capture import capture

    parts = []
    for start in range(0, inputs.size.tokens, CHUNK):
        logits = F.linear(inputs.teacher_hidden[start : start + CHUNK], inputs.teacher_weight).float()
        keys = torch.arange(start, start + len(logits), device=logits.device)
        parts.append(capture(logits, keys=keys))
    return SparseTargets.cat(parts)


VARIANTS: dict[str, Callable[[Inputs], Callable[[], None]]] = {
    "bare products, student": lambda inputs: bare_products(inputs, live=False),
    "bare products, student and teacher": lambda inputs: bare_products(inputs, live=True),
    "dense": dense,
    "trl": trl,
    "liger": liger,
    "ours, live teacher": lambda inputs: ours(inputs, sparse=False),
    "ours, sparse targets": lambda inputs: ours(inputs, sparse=True),
}


def measure(variant: str, size: Size, device: str, runs: int) -> dict[str, float]:
    """Median seconds and extra peak bytes of one variant, in this process."""
    VARIANTS[variant](Inputs(replace(size, vocab=64), device))()
    inputs = Inputs(size, device)
    run = VARIANTS[variant](inputs)
    itemsize = max(4, size.dtype.itemsize) if variant.startswith("ours") else size.dtype.itemsize
    extra = _peak(run, device) - inputs.gradient_bytes(itemsize)
    seconds = []
    for _ in range(runs):
        _clear(inputs)
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "spread": max(seconds) - min(seconds), "extra": extra}


def _peak(run: Callable[[], None], device: str) -> float:
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
        before = _resident("VmRSS")
        run()
        peak = _resident("VmHWM")
    return peak - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def _clear(inputs: Inputs) -> None:
    inputs.student_hidden.grad = inputs.student_weight.grad = None


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one alone, in this process")
    given = parser.parse_args()
    if given.variant:
        torch.set_num_threads(given.threads)
        print(json.dumps(measure(given.variant, SIZES[given.size[0]], given.device, given.runs)))
        return
    found = {size: _compare(size, given) for size in given.size or SIZES}
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def _compare(name: str, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    size = SIZES[name]
    chunk = 4 * CHUNK * size.vocab
    print(
        f"\n{name}: {size.tokens} tokens, vocabulary {size.vocab:,}, hidden {size.student} and {size.teacher}, "
        f"{str(size.dtype).removeprefix('torch.')}, {given.device}, {given.threads} threads, median of {given.runs}; "
        f"a chunk of float32 logits is {chunk / 2**20:,.0f} MiB\n"
    )
    print(f"{'':36}{'seconds':>9}{'spread':>9}{'extra memory':>14}{'chunks':>8}")
    rows = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, "--size", name, "--device", given.device]
        command += ["--runs", str(given.runs), "--threads", str(given.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{variant:36} does not run: {done.stderr.strip().splitlines()[-1][:80]}")
            continue
        rows[variant] = row = json.loads(done.stdout)
        extra = row["extra"]
        print(
            f"{variant:36}{row['seconds']:9.3f}{row['spread']:9.3f}{extra / 2**20:10,.0f} MiB{extra / chunk:8.1f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
