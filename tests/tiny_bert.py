"""A tiny BERT of its own words, and questions of three classes for it."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = {
    "card": ["card", "plastic", "chip", "pin"],
    "transfer": ["transfer", "send", "iban", "wire"],
    "top up": ["top", "load", "add", "refill"],
}
FILLERS = ["please", "my", "how", "can", "why", "is", "the", "still", "today", "not", "again", "i"]


def questions(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different questions and their classes, of which one word tells."""
    generator, found = torch.Generator().manual_seed(seed), {}
    while len(found) < count:
        label = list(WORDS)[len(found) % len(WORDS)]
        draw = torch.randint(0, 1000, (6,), generator=generator).tolist()
        words = [FILLERS[number % len(FILLERS)] for number in draw]
        words[draw[0] % 6] = WORDS[label][draw[1] % 4]
        found.setdefault(" ".join(words), label)
    return list(found.items())


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A table with the columns text and category."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        writer.writerows(rows)
    return path


def write_encoder(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """An encoder without a head, as a Hugging Face folder."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *FILLERS,
        *(word for some in WORDS.values() for word in some),
    ]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in special.items()}
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
