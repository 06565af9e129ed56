"""Does the model file say what the model folder says? Tokens, chat template and log-probabilities, side by side.

A conversion can go wrong without any error: a forgotten permutation, a rotary scaling left out or another word
splitter all give a file that loads and writes plausible text. So both sides are run and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from stillroom.contracts.errors import ParityError
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.vocabulary import load_tokenizer, read_vocabulary
from stillroom.models.llamacpp import LlamaCpp

TEXTS = (
    "The quick brown fox jumps over the lazy dog, then asks: why?\nBecause it can. It's 3:45 p.m., isn't it?",
    'def area(r):\n\treturn 3.14159 * r ** 2  # rounds\n\n\nprint(area(10), "ok")\r\nfor i in range(100): pass',
    "They'll pay 1234567 dollars, 42 cents and 0.5 %; WE'VE SEEN 10,000 of them... I'M NOT SURE!!! (see [1], {2})",
    "Déjà vu à Zürich: naïve coöperation, señor; Привет, как дела? 你好，世界！ مرحبا بالعالم 한국어 ภาษาไทย हिन्दी",
    "tabs\tand   three spaces\u00a0hard space \n \n\n  indented\n    more\n trailing   ",
    "\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (joined) \u2705 \U0001f999\U0001f999 ½ ² № ™ … “quotes” – — ‰",
    "a" * 40 + " " * 30 + "\n" * 7 + "=" * 33 + "_" * 17 + "http://example.org/?q=a%20b&c=d#e",
    " starts with a space",
)
"""Text that tokenizers cut in different ways; accents are composed, since llama.cpp does not compose them."""

_MESSAGES = [
    {"role": "user", "content": "What is 17 + 25?"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "Thank you"},
]
_MOST_TOKENS = 512
_PROBABLE = 0.01
"""Tokens less probable than this are left out of the largest error: far down the tail, rounding alone moves
log-probabilities of a right file by several hundredths."""


@dataclass(frozen=True)
class Parity:
    """How near a model file is to the folder that it was made from."""

    max_logprob_error: float
    """Largest difference of natural log-probabilities, over all positions and all tokens of probability >= 0.01."""
    mean_kl: float
    """Mean over positions of KL(folder || file), nats."""
    top1_agreement: float
    """Share of positions at which both find the same token most probable."""
    tokens_equal: bool
    template_equal: bool


@dataclass(frozen=True)
class _Gate:
    max_logprob_error: float
    mean_kl: float


_F32, _F16 = int(gguf.LlamaFileType.ALL_F32), int(gguf.LlamaFileType.MOSTLY_F16)
_GATES = {
    # With float16 weights llama.cpp also rounds what it multiplies them by; 3e-3 to 7e-3 is what right files show.
    _F32: _Gate(1e-4, 1e-7),
    _F16: _Gate(1e-2, 1e-5),
}


def check_parity(
    model_dir: str | Path,
    gguf_file: str | Path,
    *,
    texts: Sequence[str] | None = None,
    threads: int | None = None,
) -> Parity:
    """Compares a GGUF file with the Hugging Face folder that it came from, on the CPU in float32.

    Args:
        model_dir: the folder.
        gguf_file: the file.
        texts: what to compare on; default `TEXTS`. Each is read up to its first 512 tokens.
        threads: CPU threads for llama.cpp; default every core.

    Returns:
        The figures. For a quantised file they are all there is: it is expected to differ.

    Raises:
        ParityError: the file is not quantised, and its tokens, its chat template or its log-probabilities are not
            those of the folder (F32: 1e-4; F16: 1e-2 and a mean KL of 1e-5).
        ModelError: one of the two cannot be loaded.
    """
    folder = ModelFolder(model_dir)
    tokenizer = load_tokenizer(folder)
    texts = TEXTS if texts is None else texts
    sequences = [ids for ids in (tokenizer.encode(text)[:_MOST_TOKENS] for text in texts) if ids]
    # The cache is float32 even for float16 files: the file is on trial, not the cache.
    with LlamaCpp(gguf_file, threads=threads, gpu_layers=0, n_ctx=_MOST_TOKENS, kv_f32=True) as model:
        metadata = model.metadata
        wrong = _first_difference(folder, tokenizer, model, texts)
        error, kl, agreement = _distances(_reference(folder, metadata.file_type), model, sequences)
    gate = _GATES.get(metadata.file_type)
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    parity = Parity(error, kl, agreement, wrong is None, (template or None) == metadata.chat_template)
    if gate is not None:
        _enforce(parity, gate, Path(gguf_file), wrong)
    return parity


def _first_difference(
    folder: ModelFolder, tokenizer: Any, model: LlamaCpp, texts: Sequence[str]
) -> tuple[str, list[int], list[int]] | None:
    """The first text that the two tokenizers cut differently, with both sides' ids."""
    for text in _awkward(folder, tokenizer, texts):
        theirs, ours = tokenizer.encode(text), model.tokenize(text, add_bos=True)
        if theirs != ours:
            return text, theirs, ours
    return None


def _awkward(folder: ModelFolder, tokenizer: Any, texts: Sequence[str]) -> Iterator[str]:
    """The texts, their lines, and text with special tokens in it.

    Left out is what llama.cpp is known to cut differently (`Vocabulary.exact_spaces`), of which `export` tells.
    """
    exact = read_vocabulary(folder).exact_spaces
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:16]
    everything = [*texts, *(line for text in texts for line in text.splitlines() if line)]
    everything += [f"before{token}" for token in special]
    if exact:
        everything += [f"{token}after {token}\n{token} " for token in special]
        if tokenizer.chat_template:
            everything.append(
                tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
            )
    yield from (text for text in everything if exact or not text.startswith(" "))


def _reference(folder: ModelFolder, file_type: int) -> Any:
    """The folder's model in float32. For a float16 file its matrices are rounded as the file's are, so that what is
    left to see is the conversion, not the rounding that was asked for."""
    reference = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval()
    if file_type == _F16:
        for weight in reference.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.half().float()
    return reference


def _distances(
    reference: Any, model: LlamaCpp, sequences: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """Largest log-probability error, mean KL and top-1 agreement over all positions of all sequences."""
    worst, kl, agreed, positions = 0.0, 0.0, 0, 0
    for ids, logits in zip(sequences, model.logits_batch(sequences), strict=True):
        with torch.inference_mode():
            theirs = reference(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        ours = torch.from_numpy(logits).double().log_softmax(-1)
        probability, difference = theirs.exp(), theirs - ours
        worst = max(worst, float(np.where(probability >= _PROBABLE, difference.abs(), 0.0).max()))
        kl += float((probability * difference).sum())
        agreed += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        positions += len(ids)
    return worst, kl / positions, agreed / positions


def _enforce(parity: Parity, gate: _Gate, file: Path, wrong: tuple[str, list[int], list[int]] | None) -> None:
    if wrong is not None:
        text, theirs, ours = wrong
        raise ParityError(
            f"llama.cpp cuts text into other tokens than the model's tokenizer: {file.name}",
            got=f"{ours[:12]} for {text[:60]!r}",
            expected=str(theirs[:12]),
            do="report this tokenizer; do not serve the file, its prompts would not be what the model was trained on",
        )
    if not parity.template_equal:
        raise ParityError(
            f"the chat template in the file is not the model's: {file.name}",
            do="export again from the folder that holds the template you want",
        )
    # Written so that NaN fails as well.
    if not (parity.max_logprob_error <= gate.max_logprob_error and parity.mean_kl <= gate.mean_kl):
        raise ParityError(
            f"the model file does not compute what the model folder computes: {file.name}",
            got=f"log-probabilities up to {parity.max_logprob_error:.2g} apart, mean KL {parity.mean_kl:.2g}",
            expected=f"at most {gate.max_logprob_error:g} and {gate.mean_kl:g}",
            do="do not serve this file; export it again, and report the model's architecture if that does not help",
        )
