"""The task of benchmarks/modes.py, chains of small sums, and a teacher that is trained for it from nothing.

    question    37 f+05 g-48 h*02           start at 37; each step has a letter, the letters follow one another
    answer      <think>37 f+05=42 g 42-48=94 h*02=88</think>
                88                          everything modulo 100

The letters let a model find its place in chains longer than those it was shown: a chain may begin with any letter, so
that a short one can end with z. A step of the thought is written in one of two ways, with the number it starts from or
without, as often the one as the other: as with people and real models, there is more than one right word.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.gguf.vocabulary import PRE_TOKENIZERS

MODULUS = 100
MOST = 10
"""Steps of the longest chains; the teacher is shown chains of all lengths."""
SHORT, LONG = range(2, 7), range(7, 9)
"""Steps of the chains that lessons are about, and of those that are longer than any lesson."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEACHING, _TOKENS, _QUESTIONS = (
    1,
    2,
    3,
)  # seeds of what the teacher, the tokenizer and everybody else is shown


@dataclass(frozen=True)
class Chain:
    """A question, the running results and the number that it comes to."""

    question: str
    thought: str
    answer: str

    @property
    def reply(self) -> str:
        """The whole answer, thought first."""
        return f"<think>{self.thought}</think>\n{self.answer}"


def chain(numbers: random.Random, steps: int, operands: int) -> Chain:
    """A random chain of so many steps, each adding or taking 1 to `operands`, or doubling."""
    value = numbers.randrange(MODULUS)
    asked, found = [f"{value:02}"], [f"{value:02}"]
    first = numbers.randrange(len(ascii_lowercase) - steps + 1)
    for letter in ascii_lowercase[first : first + steps]:
        sign = numbers.choice("++--*")
        operand = 2 if sign == "*" else numbers.randint(1, operands)
        before = numbers.choice(("", f" {value:02}"))
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % MODULUS
        asked.append(f"{letter}{sign}{operand:02}")
        found.append(f"{letter}{before}{sign}{operand:02}={value:02}")
    return Chain(" ".join(asked), " ".join(found), f"{value:02}")


def chains(seed: int, lengths: Sequence[int], operands: int) -> Iterator[Chain]:
    """Chains without end, all different, of lengths that are equally likely; the same for the same seed."""
    numbers, seen = random.Random(seed), set[str]()
    while True:
        one = chain(numbers, numbers.choice(lengths), operands)
        if one.question not in seen:
            seen.add(one.question)
            yield one


def write_job(folder: Path, questions: int, evaluation: int, operands: int) -> None:
    """questions.jsonl to learn from, inside.jsonl and outside.jsonl to be measured on; no question is in two of them."""
    short, long = (chains(_QUESTIONS, lengths, operands) for lengths in (SHORT, LONG))
    for name, stream, count in (
        ("questions", short, questions),
        ("inside", short, evaluation),
        ("outside", long, evaluation),
    ):
        lines = []
        for _ in range(count):
            one = next(stream)
            turn = {"role": "user", "content": one.question}
            lines.append(json.dumps({"messages": [turn], "reference": one.answer}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


def build_tokenizer(operands: int) -> PreTrainedTokenizerFast:
    """A small byte-level BPE: digits and letters alone, the template's words whole."""
    # A pattern that llama.cpp knows by name, so that the links of a chain can be written as GGUF.
    words = next(patterns[0] for (patterns, _), name in PRE_TOKENIZERS.items() if name == "qwen2")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=318,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = chains(_TOKENS, range(2, MOST + 1), operands)
    texts = (f"user\n{one.question}\nassistant\n{one.reply}" for _, one in zip(range(2000), stream))  # noqa: B905
    bpe.train_from_iterator(texts, trainer)
    # Not special, so that decoding keeps the thought visible.
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


@dataclass(frozen=True)
class Shape:
    """A Llama, and how long it is trained."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    steps: int
    rows: int
    rate: float


def make_teacher(folder: Path, shape: Shape, operands: int) -> dict[str, Any]:
    """Train a teacher on fresh chains and save it; returns what that took."""
    tokenizer = build_tokenizer(operands)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(
        "eager"
    )  # quicker than the fused kernel's backward pass for heads this small
    optimiser = torch.optim.AdamW(model.parameters(), lr=shape.rate, betas=(0.9, 0.98), fused=True)
    began, tokens = time.perf_counter(), 0
    # Short chains first: how to find the next step and to reckon is learned from them in a third of the time.
    first, then = (
        _batches(tokenizer, chains(_TEACHING, lengths, operands), shape.rows)
        for lengths in (range(2, 5), range(2, MOST + 1))
    )
    for step in range(shape.steps):
        ids, labels = next(first if step < shape.steps // 2 else then)
        for group in optimiser.param_groups:
            group["lr"] = shape.rate * min((step + 1) / 50, 1.0, 2 * (shape.steps - step) / shape.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tokens += int((ids != tokenizer.pad_token_id).sum())
        if (step + 1) % 100 == 0:
            took = time.perf_counter() - began
            print(
                f"teacher: step {step + 1} of {shape.steps}, loss {loss.item():.4f}, {took:.0f} s", flush=True
            )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"steps": shape.steps, "tokens": tokens, "seconds": round(time.perf_counter() - began)}


def _batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Chain], rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels [rows, length], rows of like length together; only answers are learned."""
    turn = [{"role": "user", "content": "@"}]
    frame = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    order = random.Random(0)
    while True:
        pool = sorted((next(stream) for _ in range(32 * rows)), key=lambda one: len(one.question))
        pieces = [pool[start : start + rows] for start in range(0, len(pool), rows)]
        order.shuffle(pieces)
        for piece in pieces:
            asked = tokenizer([frame.replace("@", one.question) for one in piece])["input_ids"]
            said = tokenizer([one.reply + "<|im_end|>" for one in piece])["input_ids"]
            # Few distinct shapes: the CPU's kernels are prepared for each.
            width = -(-max(len(a) + len(b) for a, b in zip(asked, said, strict=True)) // 8) * 8 + 1
            ids = torch.full((len(piece), width), tokenizer.pad_token_id)
            labels = torch.full((len(piece), width), -100)
            for row, (before, after) in enumerate(zip(asked, said, strict=True)):
                ids[row, : len(before) + len(after)] = torch.tensor(before + after)
                labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
            yield ids, labels
