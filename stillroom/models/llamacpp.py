"""llama.cpp in this process: tokens, logits of whole texts and batched generation, straight from a GGUF file.

with LlamaCpp("student-Q4_K_M.gguf") as model:
    ids = model.tokenize("Once upon a time")
    logits = model.logits(ids)  # [tokens, vocab]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import DataError, ModelError
from stillroom.contracts.records import Sampling
from stillroom.models.llama_cpp_binding import llama
from stillroom.models.llama_cpp_context import Context
from stillroom.models.llama_cpp_generation import decode
from stillroom.models.llama_cpp_ranking import branch_logprobs
from stillroom.models.llama_cpp_words import Metadata, Words
from stillroom.models.rendering import Branches
from stillroom.models.rows import Row

_LOGITS_BYTES = 256 << 20
"""Most memory for the logits of one batch; a vocabulary of 128 k is read 524 tokens at a time."""
_PACK_TOKENS = 512
"""Tokens in a batch: more than a CPU needs to be busy, few enough for the attention scores to stay in cache."""
_PACK_SEQUENCES = 64
_CELLS = 256
"""A cache of llama.cpp's holds a multiple of so many tokens."""
_PACK_QUESTIONS = 8
"""Questions whose answers are ranked together; the other sequences are for the answers."""


class LlamaCpp:
    """A GGUF model loaded in this process; use as a context manager. One thread at a time.

    Args:
        path: the .gguf file.
        n_ctx: most tokens that one sequence may hold, prompt and answer together; default what the model was
            trained with, at most 4096.
        threads: CPU threads; default every core this process may use.
        kv_f32: float32 key-value cache and plain attention, for comparisons finer than float16 allows.
        gpu_layers: layers kept on a GPU where the wheel supports one; -1 means all.
        adapter: a GGUF LoRA adapter of this model, laid over it.

    Raises:
        ModelError: no such file, or llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        kv_f32: bool = False,
        gpu_layers: int = -1,
        adapter: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError("there is no such model file", got=self.path, do="check the path")
        self._library = llama()
        self._reader: Context | None = None
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self._model = self._library.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            raise ModelError(
                "llama.cpp cannot load this file",
                got=self.path,
                expected="a whole GGUF file of an architecture that it knows, and enough memory for it",
                do="export the model again, or check the free memory",
            )
        self._adapter = None if adapter is None else self._load_adapter(Path(adapter))
        self._words = Words(self._model)
        self.metadata: Metadata = self._words.metadata
        self.n_ctx = n_ctx or min(4096, self.metadata.context_length)
        self.threads = threads or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(4)
        )
        self._kv_f32 = kv_f32

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the weights and the caches; calling twice is harmless."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def tokenize(self, text: str, special: bool = True, *, add_bos: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            special: whether a special token written in the text (`<|im_start|>`) becomes that token, as in a rendered
                chat template, or stays plain characters, as in what a user typed.
            add_bos: whether to put the model's first token in front, if its file says so.
        """
        return self._words.tokenize(text, special, add_bos=add_bos)

    def detokenize(self, token_ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Special tokens are left out unless asked for."""
        return self._words.detokenize(token_ids, special)

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every token: [tokens, vocab] float32, row t predicting token t + 1."""
        return next(self.logits_batch([token_ids]))

    def logits_batch(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """`logits` of each sequence, in order. Short sequences share a `llama_decode`; a long one is read in pieces.

        Memory beside the answer in hand: one batch of logits (at most 256 MB) and the cache.

        Raises:
            DataError: a sequence is empty or longer than `n_ctx`.
        """
        for sequence in sequences:
            self._check_length(len(sequence))
        context = self._reading_context()
        for pack in _packs([len(sequence) for sequence in sequences], context.batch_size):
            context.clear()
            chosen = [np.asarray(sequences[i], np.int32) for i in pack]
            if len(pack) == 1:
                yield self._read_alone(context, chosen[0])
                continue
            lengths = [len(ids) for ids in chosen]
            rows = context.decode(
                np.concatenate(chosen),
                np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                np.repeat(np.arange(len(pack), dtype=np.int32), lengths),
                np.ones(sum(lengths), np.bool_),
            )
            # Copied whole before the first yield: the caller may start another call between two answers.
            yield from np.split(rows.copy(), np.cumsum(lengths)[:-1])

    def rank(self, questions: Sequence[Branches], *, vocab: int | None = None) -> Iterator[list[float]]:
        """Sum of the log-probabilities (natural log) of each answer's tokens, for each question, in order.

        Args:
            vocab: ids from here on count for nothing; default the width of the logits.

        Raises:
            DataError: a prompt with its longest answer is longer than `n_ctx`.
        """
        lengths = [len(question.ids) + max(map(len, question.tails)) for question in questions]
        for length in lengths:
            self._check_length(length)
        context = self._reading_context()
        for pack in _packs(lengths, context.batch_size, _PACK_QUESTIONS):
            yield from branch_logprobs(
                context,
                [questions[index] for index in pack],
                vocab=vocab or self.metadata.vocab_size,
                cells=self.n_ctx,
                sequences=_PACK_SEQUENCES,
            )

    def generate(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        *,
        parallel: int = 16,
        vocab: int | None = None,
        eos_ids: Set[int] = frozenset(),
    ) -> Iterator[Row]:
        """Continue rows; each comes back as soon as it is finished.

        Args:
            rows: prompts of at least one token, each with its own limit.
            sampling: temperature and top_p; the rows bring their seeds.
            parallel: rows under way at once; each has room for the longest prompt and answer.
            vocab: ids from here on are never drawn; default the width of the logits.
            eos_ids: any of these ends a row.

        Raises:
            DataError: a prompt is empty, or too long with its answer for `n_ctx`.
        """
        if not rows:
            return
        for row in rows:
            self._check_length(len(row.prompt) and len(row.prompt) + row.limit)
        sequences = min(parallel, len(rows))
        longest = max(len(row.prompt) + row.limit for row in rows)
        # llama.cpp rounds a sequence's share up to 256 cells anyway.
        context = self._context(
            cells=-(-longest // 256) * 256 * sequences,
            sequences=sequences,
            batch=max(_PACK_TOKENS, sequences),
        )
        try:
            yield from decode(
                context,
                rows,
                sampling,
                sequences=sequences,
                vocab=vocab or self.metadata.vocab_size,
                eos_ids=eos_ids,
            )
        finally:
            context.close()

    def _read_alone(self, context: Context, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        out = np.empty((len(ids), context.vocab_size), np.float32)
        for first in range(0, len(ids), context.batch_size):
            piece = ids[first : first + context.batch_size]
            positions = np.arange(first, first + len(piece), dtype=np.int32)
            out[first : first + len(piece)] = context.decode(
                piece, positions, np.zeros_like(piece), np.ones(len(piece), np.bool_)
            )
        return out

    def _reading_context(self) -> Context:
        if self._reader is None:
            # No more cells than llama.cpp itself rounds up to: by their number it chooses among longrope's factors.
            cells = -(-self.n_ctx // _CELLS) * _CELLS
            self._reader = self._context(
                cells=cells,
                sequences=_PACK_SEQUENCES,
                batch=max(1, min(_PACK_TOKENS, _LOGITS_BYTES // (4 * self.metadata.vocab_size), cells)),
                unified=True,
            )
        return self._reader

    def _context(self, *, cells: int, sequences: int, batch: int, unified: bool = False) -> Context:
        if not self._model:
            raise ValueError("this model has been closed")
        return Context(
            self._model,
            self.metadata.vocab_size,
            cells=cells,
            sequences=sequences,
            batch=batch,
            threads=self.threads,
            unified=unified,
            exact=self._kv_f32,
            adapter=self._adapter,
        )

    def _load_adapter(self, path: Path) -> int:
        """Its pointer; llama.cpp frees it with the model."""
        pointer = self._library.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not pointer:
            self.close()
            raise ModelError(
                "llama.cpp cannot lay this adapter over the model",
                got=f"{path} over {self.path}",
                expected="a GGUF LoRA adapter of that very model",
                do="export the adapter again, or give the model that it was trained on",
            )
        return pointer

    def _check_length(self, tokens: int) -> None:
        if not 0 < tokens <= self.n_ctx:
            raise DataError(
                "a text does not fit the model's context",
                got=f"{tokens} tokens",
                expected=f"1 to {self.n_ctx}",
                do="shorten the text, or raise n_ctx if the model was trained for more",
            )


def _packs(lengths: Sequence[int], most: int, sequences: int = _PACK_SEQUENCES) -> Iterator[list[int]]:
    """Runs of neighbouring indices whose lengths add up to at most `most`; an overlong one stands alone."""
    pack: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if pack and (total + length > most or len(pack) == sequences):
            yield pack
            pack, total = [], 0
        pack.append(index)
        total += length
    if pack:
        yield pack
