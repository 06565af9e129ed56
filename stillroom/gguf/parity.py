"""Does the model file say what the model folder says? Tokens, chat template and log-probabilities, side by side.

A conversion can go wrong without any error: a forgotten permutation, a rotary scaling left out or another word
splitter all give a file that loads and writes plausible text. So both sides are run and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from stillroom.contracts.errors import ParityError
from stillroom.gguf.families import context_length, family_of
from stillroom.gguf.rope import original_context
from stillroom.gguf.rounding import F16, round_matrices, rounded_arithmetic, rounds
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.vocabulary import load_tokenizer, read_vocabulary
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.local import load_causal
from stillroom.models.templates import TEMPLATE_ERRORS

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
_PROBABLE = 0.01
"""Tokens less probable than this are left out of the largest error: far down the tail, rounding alone moves
log-probabilities of a right file by several hundredths."""


@dataclass(frozen=True)
class Parity:
    """How near a model file is to the folder that it was made from.

    For an unquantised file the first three compare with the folder computed in the file's own arithmetic, so that
    they show the conversion and nothing else: with float16 weights llama.cpp rounds those and what it multiplies them
    by to float16, and it looks GELU up in a table of float16 values. The two after them compare with the folder as it
    is. For a quantised file all five do.
    """

    max_logprob_error: float
    """Largest difference of natural log-probabilities, over all positions and all tokens of probability >= 0.01."""
    mean_kl: float
    """Mean over positions of KL(folder || file), nats."""
    top1_agreement: float
    """Share of positions at which both find the same token most probable."""
    rounded_error: float
    """`max_logprob_error` with the rounding in it."""
    perplexity_change: float
    """The file's perplexity on the texts over the folder's, minus 1."""
    tokens_equal: bool
    template_equal: bool


@dataclass(frozen=True)
class _Gate:
    max_logprob_error: float
    mean_kl: float


_F32 = int(gguf.LlamaFileType.ALL_F32)
_GATES = {_F32: _Gate(1e-4, 1e-7), F16: _Gate(1e-2, 1e-5)}


def check_parity(
    model_dir: str | Path,
    gguf_file: str | Path,
    *,
    texts: Sequence[str] | None = None,
    tokens: int = 512,
    threads: int | None = None,
) -> Parity:
    """Compares a GGUF file with the Hugging Face folder that it came from, on the CPU in float32.

    Args:
        model_dir: the folder.
        gguf_file: the file.
        texts: what to compare on; default `TEXTS`.
        tokens: how much of each text is read, at most; never more than the file's context.
        threads: CPU threads for llama.cpp; default every core.

    Returns:
        The figures. For a quantised file they are all there is: it is expected to differ.

    Raises:
        ParityError: the file is not quantised, and its tokens, its chat template or its log-probabilities are not
            those of the folder, rounding apart (see `Parity`): F32 within 1e-4 and a mean KL of 1e-7, F16 within 1e-2
            and a mean KL of 1e-5. Only where rounding what is multiplied moves this very model further, as measured
            on the folder alone, that is the bound: two that round alike still add in different orders, and a sum on
            the edge falls to either side.
        ModelError: one of the two cannot be loaded.
    """
    folder = ModelFolder(model_dir)
    tokenizer = load_tokenizer(folder)
    texts = TEXTS if texts is None else texts
    most = min(tokens, context_length(family_of(folder), folder.config))
    sequences = [ids for ids in (tokenizer.encode(text)[:most] for text in texts) if ids]
    reference = load_causal(str(folder.path), "float32")
    with ExitStack() as stack:
        # The cache is float32 even for float16 files: the file is on trial, not the cache.
        readings = [
            _Reading(
                stack.enter_context(
                    LlamaCpp(gguf_file, threads=threads, gpu_layers=0, n_ctx=n_ctx, kv_f32=True)
                ),
                group,
            )
            for n_ctx, group in _by_context(sequences, original_context(folder.config))
        ]
        model = readings[0].model
        metadata, file_type = model.metadata, model.metadata.file_type
        wrong = _first_difference(folder, tokenizer, model, texts)
        as_is = alike = _distance(reference, readings)
        gate = _GATES.get(file_type)
        if gate is not None and rounds(reference, file_type):
            if file_type == F16:
                round_matrices(reference)
            with rounded_arithmetic(reference, file_type):
                alike = _distance(reference, readings)
            if not alike.within(gate):
                cost = _rounding_cost(reference, file_type, sequences)
                gate = _Gate(max(gate.max_logprob_error, cost.worst), max(gate.mean_kl, cost.mean_kl))
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    parity = Parity(
        max_logprob_error=alike.worst,
        mean_kl=alike.mean_kl,
        top1_agreement=alike.top1_agreement,
        rounded_error=as_is.worst,
        perplexity_change=as_is.perplexity_change,
        tokens_equal=wrong is None,
        template_equal=(template or None) == metadata.chat_template,
    )
    if gate is not None:
        _enforce(parity, alike, gate, Path(gguf_file), wrong)
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
            # A template that refuses a conversation is the folder's own affair: the file is to hold the same.
            with suppress(*TEMPLATE_ERRORS):
                everything.append(
                    tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
                )
    yield from (text for text in everything if exact or not text.startswith(" "))


def _by_context(
    sequences: Sequence[list[int]], original: int | None
) -> Iterator[tuple[int, list[list[int]]]]:
    """The sequences in groups, each with the context to read it in: with longrope llama.cpp takes the factors by the
    size of its context, transformers by the length of the text."""
    short = [ids for ids in sequences if original is None or len(ids) <= original]
    long = [ids for ids in sequences if original is not None and len(ids) > original]
    for group in (short, long):
        if group:
            yield max(map(len, group)), group


@dataclass(frozen=True)
class _Reading:
    """The file, opened for texts of like length."""

    model: LlamaCpp
    sequences: list[list[int]]


def _distance(reference: Any, readings: Sequence[_Reading]) -> _Distance:
    found = _Distance()
    for reading in readings:
        for ids, logits in zip(reading.sequences, reading.model.logits_batch(reading.sequences), strict=True):
            found.add(_logprobs(reference, ids), torch.from_numpy(logits).double().log_softmax(-1), ids)
    return found


@dataclass
class _Distance:
    """Adds up how far two models are apart, text by text."""

    worst: float = 0.0
    kl: float = 0.0
    agreed: int = 0
    positions: int = 0
    predicted: int = 0
    lost: float = 0.0
    """Log-probability that the file gives the texts less than the folder, nats."""

    def add(self, theirs: torch.Tensor, ours: torch.Tensor, ids: Sequence[int]) -> None:
        """One text of T tokens: both sides' log-probabilities, [T, vocab] float64, row t predicting token t + 1."""
        difference = theirs - ours
        # numpy's maximum is NaN where anything is, and so is the sum.
        probable = theirs.exp() >= _PROBABLE
        self.worst = float(np.max([self.worst, np.where(probable, difference.abs(), 0.0).max()]))
        self.kl += float((theirs.exp() * difference).sum())
        self.agreed += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        self.positions += len(ids)
        self.lost += float(difference[:-1].gather(1, torch.tensor(ids)[1:, None]).sum())
        self.predicted += len(ids) - 1

    def within(self, gate: _Gate) -> bool:
        # NaN is not.
        return self.worst <= gate.max_logprob_error and self.mean_kl <= gate.mean_kl

    @property
    def mean_kl(self) -> float:
        return self.kl / self.positions

    @property
    def top1_agreement(self) -> float:
        return self.agreed / self.positions

    @property
    def perplexity_change(self) -> float:
        return math.expm1(self.lost / self.predicted) if self.predicted else 0.0


def _logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def _rounding_cost(model: Any, file_type: int, sequences: Sequence[Sequence[int]]) -> _Distance:
    """How far `rounded_arithmetic` moves the model, in which the file has no part."""
    cost = _Distance()
    for ids in sequences:
        exact = _logprobs(model, ids)
        with rounded_arithmetic(model, file_type):
            cost.add(exact, _logprobs(model, ids), ids)
    return cost


def _enforce(
    parity: Parity,
    distance: _Distance,
    gate: _Gate,
    file: Path,
    wrong: tuple[str, list[int], list[int]] | None,
) -> None:
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
    if not distance.within(gate):
        raise ParityError(
            f"the model file does not compute what the model folder computes: {file.name}",
            got=f"log-probabilities up to {distance.worst:.2g} apart, mean KL {distance.mean_kl:.2g}",
            expected=f"at most {gate.max_logprob_error:.2g} and {gate.mean_kl:.2g}",
            do="do not serve this file; export it again, and report the model's architecture if that does not help",
        )
