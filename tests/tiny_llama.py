"""Real model folders, small enough to make on the spot: a Llama-like network and a tokenizer trained here and now."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(
    vocab_size: int = 600,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    *,
    ignore_merges: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's special tokens, trained on a page of code."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [Path(textwrap.__file__).read_text()]  # prose and code, the same on every machine
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    model_class: type[PreTrainedModel] = LlamaForCausalLM,
    **settings: object,
) -> Path:
    """A randomly initialised model with sharp enough outputs to tell right from wrong. Width 256, grouped heads."""
    torch.manual_seed(0)
    defaults = {
        "vocab_size": 640,  # padded beyond the tokenizer, as real models are
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config_class = model_class.config_class or LlamaConfig
    model = model_class(config_class(**{**defaults, **settings}))
    for name, weight in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(weight, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, layers: int = 3, hidden: int = 64
) -> LlamaForCausalLM:
    """A Llama small enough to train in a test: grouped heads, random weights, no padding of the head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny(folder: Path, *, seed: int = 0, layers: int = 3, hidden: int = 64) -> Path:
    """A whole folder of a `tiny_llama`."""
    tokenizer = train_tokenizer(320)
    tiny_llama(tokenizer, seed=seed, layers=layers, hidden=hidden).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, lines: list[dict]) -> Path:
    """Lines as a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
