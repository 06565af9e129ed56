"""Students of one teacher and the same tokens, by what they hear of it: what does a lesson book cost?

    python benchmarks/students.py --work /tmp/students             # about an hour on two cores; three seeds
    python benchmarks/students.py --work /tmp/students             # again: what is done is not done again
    python benchmarks/students.py --work /tmp/tiny --size tiny     # does it run?

On the public-domain corpus `peps` (--data is the folder of public data beside the project). A tokenizer of 8,192
tokens and a teacher of 6 M parameters are trained first, and kept in --work. Then students of 0.85 M, over the same
rows in the same order, each from the same start a seed:

    text      cross-entropy of the text alone
    live      KL to all of the teacher's probabilities, the teacher answering in every step
    book      KL from a lesson book of --budget bytes a token
    top-k     KL from the teacher's 12 best tokens, renormalised, which is what others keep

Training goes through `stillroom.training.fitting.fit`, with its checkpoints. Validation is on the corpus's end:
cross-entropy, KL to the teacher, expected calibration error of the next token (15 bins of equal mass). `closed` is
the share of the way from text to live; `of live` the validation loss over the live student's. Seconds are the
student's whole training; the capture of book and top-k is timed apart. Finished students stand in results.jsonl of
--work; a killed run goes on with the student it was at, or in the midst of the teacher. Change of size, budget or
data wants another --work.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil
from stillroom.losses import SparseTargets
from stillroom.signals import Book, BookHeader, capture, row_key, token_keys
from stillroom.stats.calibration import expected_calibration_error
from stillroom.training.batches import MemoryRows, RowSource, TrainingRow
from stillroom.training.bookrows import BookRows
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective

TOP_K = 12


@dataclass(frozen=True)
class Size:
    """Shapes of the comparison: (width, layers) of both models; rows of `row` tokens."""

    vocab: int
    teacher: tuple[int, int]
    student: tuple[int, int]
    teacher_tokens: int
    student_tokens: int
    row: int
    batch: int
    validation: int
    seeds: int


SIZES = {
    "tiny": Size(512, (64, 2), (32, 1), 16_000, 8_000, 64, 8, 16, 2),
    "small": Size(8192, (256, 5), (64, 6), 3_000_000, 800_000, 256, 8, 96, 3),
}


class School:
    """Corpus, tokenizer, teacher and rows of one comparison, made once and kept in a folder."""

    def __init__(self, folder: Path, data: Path, size: Size, budget: int, precision: str) -> None:
        self.folder, self.size, self.budget, self.precision = folder, size, budget, precision
        folder.mkdir(parents=True, exist_ok=True)
        stamp = json.dumps({"size": asdict(size), "budget": budget, "precision": precision})
        mark = folder / "settings.json"
        if mark.is_file() and mark.read_text() != stamp:
            sys.exit(f"{folder} holds a comparison of other settings; give another --work")
        mark.write_text(stamp)
        self.blocks = self._tokens(data)
        self.held_out = self.blocks[-size.validation :]
        self.lessons = self.blocks[: -size.validation][: size.student_tokens // size.row]
        self.mask = np.arange(size.row) > 0
        self.teacher = self._trained_teacher()

    def _tokens(self, data: Path) -> np.ndarray:
        """The corpus as int32 [blocks, row], in an order that mixes its documents but for the held-out end."""
        kept = self.folder / "tokens.npy"
        if not kept.is_file():
            text = gzip.decompress((data / "peps" / "peps_public_domain.txt.gz").read_bytes()).decode()
            size = self.size
            needed = max(size.teacher_tokens, size.student_tokens) + size.validation * size.row
            text = text[: 8 * needed]  # a token is a few letters; all of the corpus but at the tiny size
            ids = tokenizer_of(text, self.size.vocab)(text)["input_ids"]
            whole = len(ids) // self.size.row
            blocks = np.array(ids[: whole * self.size.row], np.int32).reshape(whole, self.size.row)
            lessons = blocks[: -self.size.validation]
            np.random.default_rng(0).shuffle(lessons)
            np.save(kept, blocks)
        return np.load(kept)

    def fit(
        self, model: LlamaForCausalLM, rows: RowSource, tokens: int, seed: int, name: str, **more: Any
    ) -> float:
        """Train a model and return the seconds it took in this sitting."""
        steps = tokens // (self.size.row * self.size.batch)
        began, checkpoints = time.perf_counter(), self.folder / "checkpoints" / name
        settings = Distil(
            steps=steps,
            batch_size=self.size.batch,
            micro_batch_size=self.size.batch,
            learning_rate=2e-3,
            precision=self.precision,
            checkpoint_every=max(steps // 10, 1),
        )
        fit(
            model,
            rows,
            settings=settings,
            steps=steps,
            seed=seed,
            checkpoints=checkpoints,
            metrics=self.folder / "metrics" / f"{name}.jsonl",
            label=name,
            progress=Progress(),
            **more,
        )
        seconds = time.perf_counter() - began
        shutil.rmtree(checkpoints)
        return seconds

    def _trained_teacher(self) -> LlamaForCausalLM:
        folder = self.folder / "teacher"
        if not (folder / "done").is_file():
            model = _model(self.size, *self.size.teacher, seed=0)
            blocks = self.blocks[: -self.size.validation]
            self.fit(
                model,
                self.plain(blocks),
                self.size.teacher_tokens,
                seed=0,
                name="teacher",
                objective=Objective(1.0, 0.0),
            )
            model.save_pretrained(folder)
            (folder / "done").touch()
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    def plain(self, blocks: np.ndarray) -> MemoryRows:
        """Rows without signals."""
        return MemoryRows([(block, self.mask) for block in blocks])

    @torch.no_grad()
    def signals(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Each lesson and the teacher's logits of its predicted tokens, float32 [row - 1, vocab]."""
        for block in self.lessons:
            ids = torch.from_numpy(block.astype(np.int64))
            yield block, self.teacher(input_ids=ids[None], use_cache=False).logits[0, :-1]

    def book(self) -> BookRows:
        """The lessons with the signals of a book at the budget."""
        folder, places = self.folder / "book", torch.arange(1, self.size.row)
        header = BookHeader("peps", "", self.size.vocab, 1.0, "head+draws", self.budget, "peps teacher")
        mask = torch.from_numpy(self.mask)
        keys = [row_key(header.tokenizer, torch.from_numpy(block), mask) for block in self.lessons]
        if not (folder / "done").is_file():
            began = time.perf_counter()
            with Book.create(folder, header) as book:
                for key, (block, logits) in zip(keys, self.signals(), strict=True):
                    targets = capture(logits, keys=token_keys(key, places), budget=self.budget)
                    book.append(torch.from_numpy(block), mask, targets)
            self._captured("book", time.perf_counter() - began)
        lengths = np.full(len(keys), self.size.row)
        return BookRows(Book.open(folder), keys, lengths)

    def top_k(self) -> RenormalisedRows:
        """The lessons with the teacher's best tokens as if there were no others."""
        file = self.folder / "top-k.npz"
        if not file.is_file():
            began = time.perf_counter()
            best = [logits.softmax(-1).topk(TOP_K) for _, logits in self.signals()]
            ids = np.stack([b.indices.numpy().astype(np.int32) for b in best])
            np.savez(file, ids=ids, p=np.stack([b.values.numpy() for b in best]))
            self._captured("top-k", time.perf_counter() - began)
        kept = np.load(file)
        return RenormalisedRows(self.lessons, self.mask, kept["ids"], kept["p"])

    def _captured(self, name: str, seconds: float) -> None:
        with (self.folder / f"{name}.capture").open("w") as out:
            out.write(str(seconds))
        if (self.folder / name).is_dir():
            (self.folder / name / "done").touch()

    @torch.no_grad()
    def examine(self, student: LlamaForCausalLM) -> dict[str, float]:
        """Validation loss and KL to the teacher, nats a token, and the calibration error."""
        student.eval()
        loss, kl, sure, right = 0.0, 0.0, [], []
        for block in self.held_out:
            ids = torch.from_numpy(block.astype(np.int64))
            log_p, log_q = (
                m(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
                for m in (self.teacher, student)
            )
            loss += F.nll_loss(log_q, ids[1:], reduction="sum").item()
            kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
            best = log_q.max(-1)
            sure.append(best.values.exp().clamp(0, 1).numpy())
            right.append((best.indices == ids[1:]).numpy())
        tokens = self.held_out.size - len(self.held_out)
        error = expected_calibration_error(np.concatenate(sure), np.concatenate(right))
        return {"loss": loss / tokens, "kl": kl / tokens, "ece": error}


class RenormalisedRows:
    """Rows whose targets are the best tokens with their probabilities divided by their sum."""

    def __init__(self, blocks: np.ndarray, mask: np.ndarray, ids: np.ndarray, p: np.ndarray) -> None:
        self.blocks, self.mask, self.ids, self.p = blocks, mask, ids, p
        self.lengths = np.full(len(blocks), blocks.shape[1])

    def __getitem__(self, index: int) -> TrainingRow:
        p = torch.from_numpy(self.p[index]).double()
        p = p / p.sum(-1, keepdim=True)
        tokens, kept = p.shape
        targets = SparseTargets(
            torch.from_numpy(self.ids[index].astype(np.int64)).flatten(),
            p.float().flatten(),
            torch.arange(tokens + 1) * kept,
            torch.zeros(tokens),
            torch.special.entr(p).sum(-1).float(),
        )
        return TrainingRow(self.blocks[index], self.mask, targets)


def _model(size: Size, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    heads = max(hidden // 64, 2)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=hidden,
        intermediate_size=max(hidden * 11 // 4, 64),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=size.row,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def tokenizer_of(text: str, vocab: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((text[i : i + 100_000] for i in range(0, 4_000_000, 100_000)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


HEARD: dict[str, Callable[[School], dict[str, Any]]] = {
    "text": lambda school: {"rows": school.plain(school.lessons), "objective": Objective(1.0, 0.0)},
    "live": lambda school: {
        "rows": school.plain(school.lessons),
        "objective": Objective(),
        "teacher": school.teacher,
    },
    "book": lambda school: {"rows": school.book(), "objective": Objective()},
    "top-k": lambda school: {"rows": school.top_k(), "objective": Objective()},
}


def train(school: School, name: str, seed: int) -> dict[str, Any]:
    """One student's figures."""
    student = _model(school.size, *school.size.student, seed=seed + 1)
    heard = HEARD[name](school)
    rows = heard.pop("rows")
    # A student that was killed starts anew, so that its seconds are those of all its steps.
    shutil.rmtree(school.folder / "checkpoints" / f"{name}-{seed}", ignore_errors=True)
    seconds = school.fit(student, rows, school.size.student_tokens, seed, f"{name}-{seed}", **heard)
    capture_file = school.folder / f"{name}.capture"
    capturing = float(capture_file.read_text()) if capture_file.is_file() else 0.0
    return {
        "student": name,
        "seed": seed,
        **school.examine(student),
        "seconds": seconds,
        "capture": capturing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--budget", type=int, default=36, help="bytes a token of the book")
    parser.add_argument("--seeds", type=int, help="how many; default: the size's")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    school = School(given.work, given.data, SIZES[given.size], given.budget, given.precision)
    file = given.work / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {(line["student"], line["seed"]) for line in lines}
    for seed in range(given.seeds or school.size.seeds):
        for name in HEARD:
            if (name, seed) not in done:
                lines.append(train(school, name, seed))
                with file.open("a") as out:
                    out.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    _table(school, lines)


def _table(school: School, lines: list[dict[str, Any]]) -> None:
    teacher = school.examine(school.teacher)
    print(f"\n{school.size.student_tokens:,} tokens a student, {school.held_out.size:,} held out")
    print(f"teacher: loss {teacher['loss']:.3f}, ECE {teacher['ece']:.4f}\n")
    print(
        f"{'':8}{'seeds':>6}{'loss':>9}{'±':>7}{'of live':>9}{'closed':>8}{'KL':>8}{'ECE':>8}{'s':>8}{'capture s':>11}"
    )
    mean = {
        name: {
            key: statistics.mean(line[key] for line in rows)
            for key in ("loss", "kl", "ece", "seconds", "capture")
        }
        for name in HEARD
        if (rows := [line for line in lines if line["student"] == name])
    }
    for name, row in mean.items():
        losses = [line["loss"] for line in lines if line["student"] == name]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        gap = mean["text"]["loss"] - mean["live"]["loss"]
        print(
            f"{name:8}{len(losses):6}{row['loss']:9.4f}{spread:7.4f}{row['loss'] / mean['live']['loss']:9.4f}"
            f"{(mean['text']['loss'] - row['loss']) / gap if gap else 0:8.1%}{row['kl']:8.4f}{row['ece']:8.4f}"
            f"{row['seconds']:8.1f}{row['capture']:11.1f}"
        )


if __name__ == "__main__":
    main()
