"""What a lesson book's signals are worth at equal bytes: the gradient of a student's head against full KL.

    python benchmarks/signals.py                    # under ten minutes on two cores
    python benchmarks/signals.py --tiny             # under a minute: does it run? its figures mean nothing
    python benchmarks/signals.py --work DIR --json signals.json

Data: ../shared/data/peps (public-domain English and code). A byte-level BPE of 8,192 tokens is trained on it, then a
Llama of 7 M parameters (width 256, 4 layers) for 150 steps of 2,048 tokens: the flat teacher. The sharp one is the
same with its logits scaled until its 12 likeliest tokens hold 0.94 of the mass, as those of an instruction-tuned model
on its own answers do. Each teaches a student of 1.2 M (width 64, 2 layers) by full KL, which is looked at after 15 steps
(early) and after 120 (late). Teachers and students are saved in --work and used again.

Judged: the gradient by the student's head [8192, 64], summed over 32,768 held-out tokens, in float64, for targets of 24,
36, 64 and 128 bytes a token on average, ids, weights, counts and entropy included. Cosine to full KL's gradient, ratio
of norms, and the loss that would be reported. Settings are found on the first 256 tokens so that the mean of bytes
used fits; `bytes` is what was used.

    top-k, renormalised           the usual way: k tokens, scaled to sum to one; weights exact, a byte each counted
    top-k + bucket                ours, kind "top-k"
    draws                         N draws with replacement (Anshumann et al. 2025), a byte a count
    head + draws                  ours, kind "head+draws"
    head + draws, shrunk by a     the share a of the drawn tail is given to a bucket instead: less variance, some bias;
                                  the loss shown is that of head + draws, which the same codes give
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from stillroom.losses import SparseTargets, TeacherHead, fused_linear_divergence, sparse_forward_kl
from stillroom.signals.capture import capture
from stillroom.signals.codes import id_bits
from stillroom.signals.counter import mix

BYTES = (24, 36, 64, 128)
CHUNK, LENGTH = 1024, 256
SHARP = 0.94


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    vocab: int = 8192
    teacher: tuple[int, int] = (256, 4)
    student: tuple[int, int] = (64, 2)
    teacher_steps: int = 150
    stages: tuple[int, int] = (15, 120)
    batch: int = 8
    tokens: int = 32768


TINY = Size(1000, (64, 1), (32, 1), 8, (2, 6), 2, 1024)


# Models.


@dataclass
class Model:
    """A body and its head; the head stands apart since its gradient is what is judged."""

    body: LlamaModel
    head: Tensor

    @classmethod
    def make(cls, vocab: int, width: int, layers: int, seed: int) -> Model:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            use_cache=False,
        )
        return cls(LlamaModel(config), torch.nn.Parameter(torch.randn(vocab, width) * 0.02))

    def hidden(self, ids: Tensor) -> Tensor:
        """`[rows * (length - 1), width]`, what predicts all tokens but the first."""
        return self.body(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)

    def state(self) -> dict[str, Tensor]:
        return {
            "head": self.head.detach().clone(),
            **{k: v.clone() for k, v in self.body.state_dict().items()},
        }

    def load(self, state: dict[str, Tensor]) -> Model:
        self.body.load_state_dict({name: value for name, value in state.items() if name != "head"})
        self.head = torch.nn.Parameter(state["head"])
        return self


def batches(ids: Tensor, rows: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(ids) - LENGTH - 1, (rows,), generator=generator)
        yield torch.stack([ids[start : start + LENGTH + 1] for start in starts])


def train(
    model: Model, loss: Callable[[Tensor], Tensor], data: Iterator[Tensor], steps: int
) -> Iterator[int]:
    """Train, saying after each step how many are done."""
    parameters = [*model.body.parameters(), model.head]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for done, batch in enumerate(data, 1):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, done / 10) * (0.1 + 0.9 * (1 - done / steps))
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield done


def saved(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What is saved there, or made and saved."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        began = time.perf_counter()
        save_file({name: value.contiguous() for name, value in make().items()}, path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return load_file(path)


def corpus(data: Path, work: Path, size: Size) -> Tensor:
    """The corpus as token ids."""

    def make() -> dict[str, Tensor]:
        text = gzip.decompress((data / "peps" / "peps_public_domain.txt.gz").read_bytes()).decode()
        text = text[: 100 * size.tokens]
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(text[:2_000_000].splitlines(keepends=True), vocab_size=size.vocab)
        return {"ids": torch.tensor(tokenizer.encode(text).ids)}

    return saved(work / "corpus.safetensors", make)["ids"]


def make_teacher(ids: Tensor, size: Size) -> dict[str, Tensor]:
    model = Model.make(size.vocab, *size.teacher, seed=0)

    def loss(batch: Tensor) -> Tensor:
        logits = model.hidden(batch) @ model.head.T
        return torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())

    for _ in train(model, loss, batches(ids, size.batch, size.teacher_steps, 1), size.teacher_steps):
        pass
    return model.state()


def make_students(ids: Tensor, size: Size, teacher: Model, scale: float) -> dict[str, Tensor]:
    """The student after each of the stages, one `early.` and one `late.`."""
    model, steps, found = Model.make(size.vocab, *size.student, seed=2), size.stages[1], {}

    def loss(batch: Tensor) -> Tensor:
        with torch.no_grad():
            target = TeacherHead(teacher.hidden(batch), teacher.head.detach(), logit_scale=scale)
        return fused_linear_divergence(model.hidden(batch), model.head, target).loss

    for done in train(model, loss, batches(ids, size.batch, steps, 3), steps):
        for name, stage in zip(("early", "late"), size.stages, strict=True):
            if done == stage:
                found |= {f"{name}.{key}": value for key, value in model.state().items()}
    return found


def sharpening(logits: Tensor) -> float:
    """The scale of the logits at which the 12 likeliest tokens hold a mass of 0.94."""
    low, high = 1.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        mass = (logits * middle).softmax(-1).topk(12).values.sum(-1).mean()
        low, high = (middle, high) if mass < SHARP else (low, middle)
    return low


# Targets of equal size.


def renormalised(logits: Tensor, k: int) -> tuple[SparseTargets, float]:
    p, ids = logits.double().softmax(-1).topk(k)
    weights = p / p.sum(-1, keepdim=True)
    targets = sparse(ids, weights, torch.ones_like(ids, dtype=torch.bool))
    entropy = torch.special.entr(weights).sum(-1).float()
    return replace(targets, entropy=entropy), 2 + k * (id_bits(logits.shape[1]) + 8) / 8


def draws(logits: Tensor, count: int, seed: int) -> tuple[SparseTargets, float]:
    p = logits.double().softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(p, count, replacement=True, generator=generator).sort(-1).values
    new = torch.nn.functional.pad(drawn.diff(dim=-1) != 0, (1, 0), value=True)
    slot = new.cumsum(-1) - 1
    counts = torch.zeros_like(p[:, :count]).scatter_add_(1, slot, torch.ones_like(slot, dtype=torch.float64))
    ids = torch.zeros_like(drawn).scatter_(1, slot, drawn)
    targets = sparse(ids, counts / count, counts > 0)
    entropy = torch.special.entr(p).sum(-1).float()
    size = 3 + (id_bits(logits.shape[1]) + 8) / 8 * targets.kept / targets.tokens
    return replace(targets, entropy=entropy), size


def sparse(ids: Tensor, weights: Tensor, keep: Tensor) -> SparseTargets:
    offsets = torch.nn.functional.pad(keep.sum(-1).cumsum(0), (1, 0))
    zeros = torch.zeros(len(ids))
    return SparseTargets(ids[keep], weights[keep].float(), offsets, zeros, zeros)


def captured(logits: Tensor, budget: int, seed: int, kind: str) -> tuple[SparseTargets, float]:
    keys = mix(torch.arange(len(logits)) + seed * CHUNK)
    targets = capture(logits, keys=keys, budget=budget, kind=kind)
    return targets, targets.bytes_per_token(logits.shape[1])


def shrunk(targets: SparseTargets, share: float) -> SparseTargets:
    """Draws keep all but a share of their weight, and a bucket gets it."""
    rows = targets.positions
    place = torch.arange(targets.kept) - targets.offsets[:-1][rows]
    drawn = place >= targets.heads[rows]  # type: ignore[attr-defined]
    tail = torch.zeros(targets.tokens).index_add_(0, rows, targets.weights * drawn)
    weights = torch.where(drawn, targets.weights * (1 - share), targets.weights)
    return SparseTargets(targets.ids, weights, targets.offsets, share * tail, targets.entropy, bucket=True)


Maker = Callable[[Tensor, int, int], tuple[SparseTargets, float]]
MAKERS: dict[str, tuple[Maker, int]] = {
    "top-k, renormalised": (lambda x, n, seed: renormalised(x, n), 1),
    "top-k + bucket": (lambda x, n, seed: captured(x, n, seed, "top-k"), 8),
    "draws": (draws, 1),
    "head + draws": (lambda x, n, seed: captured(x, n, seed, "head+draws"), 8),
}
SHRINKING = (0.25, 0.5)


def fitting(make: Maker, least: int, logits: Tensor, wanted: float) -> int:
    """The largest setting whose mean of bytes is within what is wanted."""
    low, high = least, round(4 * wanted)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if make(logits, middle, 0)[1] <= wanted else (low, middle - 1)
    return low


# Judging.


class Head:
    """The gradient of a student's head by many kinds of targets, summed chunk by chunk in float64."""

    def __init__(self, model: Model) -> None:
        self.model, self.head = model, model.head.detach().double()
        self.sums: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}

    def see(self, hidden: Tensor) -> None:
        """Take the next chunk's hidden states."""
        self.hidden = hidden.double()
        self.log_q = (self.hidden @ self.head.T).log_softmax(-1)
        self.q = self.log_q.exp()
        self.all = self.q.T @ self.hidden

    def add(self, name: str, targets: SparseTargets) -> None:
        """Add the gradient q - w, w of a bucket being spread as the student spreads what is not kept."""
        rows, ids, weights = targets.positions, targets.ids, targets.weights.double()
        grad = (
            self.all.index_add(0, ids, self.hidden[rows], alpha=0) if not targets.kept else self.all.clone()
        )
        grad.index_add_(0, ids, -weights[:, None] * self.hidden[rows])
        values = torch.zeros(targets.tokens).double().index_add_(0, rows, -weights * self.log_q[rows, ids])
        if targets.bucket:
            kept = torch.zeros(targets.tokens).double().index_add_(0, rows, self.q[rows, ids])
            outside = (1 - kept).clamp(min=1e-12)
            tail = targets.tail_mass.double()
            spread = (tail / outside)[:, None] * self.hidden
            grad -= self.q.T @ spread
            grad.index_add_(0, ids, self.q[rows, ids][:, None] * spread[rows])
            values -= tail * outside.log()
        self._keep(name, grad, values - targets.entropy.double())

    def add_dense(self, logits: Tensor) -> None:
        """Add the gradient of full KL."""
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        self._keep("full KL", self.all - p.T @ self.hidden, (p * (log_p - self.log_q)).sum(-1))

    def _keep(self, name: str, grad: Tensor, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + grad
        self.values[name] = self.values.get(name, 0.0) + float(values.sum())

    def check(self, targets: SparseTargets) -> None:
        """The formula above against the library's."""
        logits = (self.hidden @ self.head.T).requires_grad_()
        values = sparse_forward_kl(logits, targets)
        (slope,) = torch.autograd.grad(values.sum(), logits)
        other = Head(self.model)
        other.hidden, other.log_q, other.q, other.all = self.hidden, self.log_q, self.q, self.all
        other.add("", targets)
        torch.testing.assert_close(other.sums[""], slope.T @ self.hidden, rtol=1e-5, atol=1e-5)
        assert math.isclose(other.values[""], float(values.detach().sum()), rel_tol=1e-5, abs_tol=1e-3)


def judge(
    name: str, ids: Tensor, teacher: Model, scale: float, students: dict[str, Model]
) -> list[dict[str, float | str]]:
    """Every kind and size of targets against full KL for one teacher; one record each."""
    rows = ids.unfold(0, LENGTH + 1, LENGTH).split(CHUNK // LENGTH)
    heads = {stage: Head(model) for stage, model in students.items()}
    settings: dict[tuple[str, int], int] = {}
    used: dict[str, float] = {}
    with torch.no_grad():
        for number, batch in enumerate(rows):
            logits = (teacher.hidden(batch) @ teacher.head.T) * scale
            for head in heads.values():
                head.see(head.model.hidden(batch))
                head.add_dense(logits)
            for wanted in BYTES:
                for kind, (make, least) in MAKERS.items():
                    if number == 0:
                        settings[kind, wanted] = fitting(make, least, logits[:256], wanted)
                    targets, size = make(logits, settings[kind, wanted], number)
                    variants = {kind: targets}
                    if kind == "head + draws":
                        variants |= {
                            f"{kind}, shrunk by {share}": shrunk(targets, share) for share in SHRINKING
                        }
                    for variant, these in variants.items():
                        label = f"{wanted} {variant}"
                        used[label] = used.get(label, 0.0) + size * len(logits)
                        for head in heads.values():
                            head.add(label, these)
                            if number == 0 and wanted == BYTES[0]:
                                with torch.enable_grad():
                                    head.check(these)
    tokens = sum(batch.shape[0] * LENGTH for batch in rows)
    return [
        record
        for stage, head in heads.items()
        for record in _records(
            name, stage, head, {label: size / tokens for label, size in used.items()}, tokens
        )
    ]


def _records(
    teacher: str, stage: str, head: Head, used: dict[str, float], tokens: int
) -> Iterator[dict[str, float | str]]:
    full = head.sums["full KL"].flatten()
    print(
        f"\n{teacher} teacher, {stage} student, full KL {head.values['full KL'] / tokens:.4f} nats a token\n"
    )
    print(f"{'':34}{'bytes':>7}{'cosine':>9}{'norm':>8}{'loss':>9}")
    for label, size in used.items():
        wanted, _, variant = label.partition(" ")
        grad = head.sums[label].flatten()
        loss = head.values[label.partition(", shrunk")[0]] / tokens
        cosine, norm = float(grad @ full / (grad.norm() * full.norm())), float(grad.norm() / full.norm())
        print(f"{wanted:>4}  {variant:28}{size:7.1f}{cosine:9.5f}{norm:8.4f}{loss:9.4f}", flush=True)
        yield {
            "teacher": teacher,
            "student": stage,
            "wanted": int(wanted),
            "targets": variant,
            "bytes": size,
            "cosine": cosine,
            "norm": norm,
            "loss": loss,
            "full": head.values["full KL"] / tokens,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("runs") / "benchmark-signals")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = TINY if given.tiny else Size()
    work = given.work / ("tiny" if given.tiny else "full")
    work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    ids = corpus(given.data, work, size)
    held_out, ids = ids[-size.tokens - 1 :], ids[: -size.tokens - 1]
    print(f"{size}; {len(ids):,} tokens to train on, {given.threads} threads", flush=True)
    teacher = Model.make(size.vocab, *size.teacher, seed=0)
    teacher.load(saved(work / "teacher.safetensors", lambda: make_teacher(ids, size)))
    with torch.no_grad():
        sample = teacher.hidden(held_out[: 4 * LENGTH].view(4, LENGTH)) @ teacher.head.T
    found = []
    for name, scale in (("flat", 1.0), ("sharp", sharpening(sample))):
        made = saved(work / f"students-{name}.safetensors", lambda: make_students(ids, size, teacher, scale))  # noqa: B023
        students = {
            stage: Model.make(size.vocab, *size.student, seed=2).load(
                {key.removeprefix(f"{stage}."): value for key, value in made.items() if key.startswith(stage)}
            )
            for stage in ("early", "late")
        }
        mass = float((sample * scale).softmax(-1).topk(12).values.sum(-1).mean())
        print(f"\n{name} teacher: logits times {scale:.2f}, mass of the 12 likeliest tokens {mass:.3f}")
        found += judge(name, held_out, teacher, scale, students)
    print(f"\n{time.perf_counter() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
