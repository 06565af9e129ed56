"""What an importance matrix does for small files: KL of each kind with and without one, on text that it has not seen.

    python benchmarks/importance.py --data ../shared/data

Two models: the quickstart's teacher, on tickets, and one that is trained here on GSM8K's word problems for some minutes. The
matrix is gathered over training lessons; the KL is that of the file against the folder in float32, nats a token, over
lessons that neither training nor matrix saw.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

KINDS = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
_BATCH, _LENGTH, _HELD_OUT = 8, 256, 64


def word_problems(data: Path) -> list[list[dict[str, str]]]:
    """GSM8K's training set as conversations."""
    with gzip.open(data / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [
        [{"role": "user", "content": line["question"]}, {"role": "assistant", "content": line["answer"]}]
        for line in lines
    ]


def ticket_lessons() -> list[list[dict[str, str]]]:
    """Messages as the quickstart's teacher was trained on, with whole answers."""
    from stillroom.lessons.prompts.tickets import tickets

    return [
        [{"role": "user", "content": ticket.message}, {"role": "assistant", "content": ticket.reply}]
        for ticket in tickets(1000, seed=4711)
    ]


def train(folder: Path, lessons: list[list[dict[str, str]]], steps: int) -> Path:
    """A Llama of 6 M weights that has read the lessons for `steps` steps."""
    from tiny_llama import save_model, train_tokenizer
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    tokenizer = train_tokenizer(600)
    tokenizer = tokenizer.train_new_from_iterator(
        ("\n".join(turn["content"] for turn in lesson) for lesson in lessons), 2048
    )
    save_model(
        folder,
        tokenizer,
        vocab_size=2048 + 64,
        num_hidden_layers=8,
        intermediate_size=768,
        initializer_range=0.02,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    ids = [tokenizer.apply_chat_template(lesson, tokenize=True, return_dict=False) for lesson in lessons]
    stream = torch.tensor([token for one in ids for token in one])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimiser, 50, steps)
    random = np.random.default_rng(0)
    for step in range(steps):
        starts = random.integers(0, len(stream) - _LENGTH, _BATCH)
        batch = torch.stack([stream[start : start + _LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    return folder


def compare(title: str, folder: Path, lessons: list[list[dict[str, str]]], scratch: Path) -> None:
    """A line a kind: KL without and with the matrix."""
    from stillroom.contracts.records import Lesson
    from stillroom.gguf import check_parity, export, gather_importance
    from stillroom.models.rendering import Renderer

    renderer = Renderer.load(folder)
    texts = [renderer.tokenizer.apply_chat_template(lesson, tokenize=False) for lesson in lessons[:_HELD_OUT]]
    shown = (Lesson(str(number), lesson) for number, lesson in enumerate(lessons[_HELD_OUT:]))
    matrix = gather_importance(folder, shown, source=title)
    print(f"{title}: {max(matrix.counts.values()):,} tokens read")
    for kind in KINDS:
        found = []
        for importance in (None, matrix):
            made = export(folder, scratch / "m.gguf", kind, importance=importance, overwrite=True)
            found.append((check_parity(folder, made.path, texts=texts), made))
        (plain, file), (weighed, other) = found
        print(
            f"{kind:<7} {file.bits_per_weight:5.2f} bits  KL {plain.mean_kl:.5f}   weighed {weighed.mean_kl:.5f} "
            f"({weighed.mean_kl / plain.mean_kl:.2f}, {other.bits_per_weight:.2f} bits)   "
            f"top-1 {plain.top1_agreement:.4f}, {weighed.top1_agreement:.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--steps", type=int, default=600, help="of training on word problems; 0 leaves them out"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        compare("tickets", ROOT / "stillroom/embedded/tickets-teacher", ticket_lessons(), scratch)
        if given.steps:
            lessons = word_problems(given.data)
            folder = train(scratch / "model", lessons[_HELD_OUT:], given.steps)
            compare("word problems", folder, lessons, scratch)


if __name__ == "__main__":
    main()
