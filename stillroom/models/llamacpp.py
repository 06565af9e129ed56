"""llama.cpp in this process: tokens, logits of whole texts and batched generation, straight from a GGUF file.

with LlamaCpp("student-Q4_K_M.gguf") as model:
    ids = model.tokenize("Once upon a time")
    logits = model.logits(ids)  # [tokens, vocab]
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import DataError, ModelError
from stillroom.contracts.records import Sampling
from stillroom.models.llama_cpp_binding import VOCAB_SENTENCEPIECE, llama
from stillroom.models.llama_cpp_context import Context
from stillroom.models.llama_cpp_generation import decode
from stillroom.models.rows import Row

_LOGITS_BYTES = 256 << 20
"""Most memory for the logits of one batch; a vocabulary of 128 k is read 524 tokens at a time."""
_PACK_TOKENS = 512
"""Tokens in a batch: more than a CPU needs to be busy, few enough for the attention scores to stay in cache."""
_PACK_SEQUENCES = 64


@dataclass(frozen=True)
class Metadata:
    """What the file says about itself. Ids are None where the file names no such token."""

    description: str
    architecture: str
    file_type: int
    """`general.file_type`: 0 is all float32, 1 mostly float16, the others are quantised."""
    vocab_size: int
    context_length: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool
    chat_template: str | None


class LlamaCpp:
    """A GGUF model loaded in this process; use as a context manager. One thread at a time.

    Args:
        path: the .gguf file.
        n_ctx: most tokens that one sequence may hold, prompt and answer together; default what the model was
            trained with, at most 4096.
        threads: CPU threads; default every core this process may use.
        kv_f32: float32 key-value cache and plain attention, for comparisons finer than float16 allows.
        gpu_layers: layers kept on a GPU where the wheel supports one; -1 means all.

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
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError("there is no such model file", got=self.path, do="check the path")
        self._library = llama()
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
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self.n_ctx = n_ctx or min(4096, self.metadata.context_length)
        self.threads = threads or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(4)
        )
        self._kv_f32 = kv_f32
        self._reader: Context | None = None

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

    @cached_property
    def metadata(self) -> Metadata:
        library, model, vocab = self._library, self._model, self._vocab
        description = ctypes.create_string_buffer(256)
        library.llama_model_desc(model, description, len(description))
        template = library.llama_model_chat_template(model, None)
        # Asked of the file: where it names no such token, llama.cpp makes one up (id 11).
        bos, eos, pad = (self._value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding"))
        return Metadata(
            description=description.value.decode(),
            architecture=self._value("general.architecture") or "",
            file_type=int(self._value("general.file_type") or -1),
            vocab_size=library.llama_vocab_n_tokens(vocab),
            context_length=library.llama_model_n_ctx_train(model),
            bos_id=None if bos is None else int(bos),
            eos_id=None if eos is None else int(eos),
            pad_id=None if pad is None else int(pad),
            add_bos=library.llama_vocab_get_add_bos(vocab),
            chat_template=None if template is None else template.decode(),
        )

    def tokenize(self, text: str, special: bool = True, *, add_bos: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            special: whether a special token written in the text (`<|im_start|>`) becomes that token, as in a rendered
                chat template, or stays plain characters, as in what a user typed.
            add_bos: whether to put the model's first token in front, if its file says so.
        """
        data = text.encode()
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(self._vocab, data, len(data), buffer, room, add_bos, special)
            if count >= 0:
                return buffer[:count]
            room = -count

    def detokenize(self, token_ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Special tokens are left out unless asked for.

        Pieces are joined here, since llama.cpp's own function removes spaces before punctuation for some tokenizers.
        """
        text = b"".join(self._piece(token, special) for token in token_ids).decode(errors="replace")
        if self._drops_first_space and text.startswith(" "):
            return text[1:]
        return text

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
            batch = max(1, min(_PACK_TOKENS, _LOGITS_BYTES // (4 * self.metadata.vocab_size)))
            self._reader = self._context(
                cells=max(self.n_ctx, batch), sequences=_PACK_SEQUENCES, batch=batch, unified=True
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
        )

    def _check_length(self, tokens: int) -> None:
        if not 0 < tokens <= self.n_ctx:
            raise DataError(
                "a text does not fit the model's context",
                got=f"{tokens} tokens",
                expected=f"1 to {self.n_ctx}",
                do="shorten the text, or raise n_ctx if the model was trained for more",
            )

    def _piece(self, token: int, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    @cached_property
    def _drops_first_space(self) -> bool:
        sentencepiece = self._library.llama_vocab_type(self._vocab) == VOCAB_SENTENCEPIECE
        return sentencepiece and self._value("tokenizer.ggml.add_space_prefix") != "false"

    def _value(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        count = self._library.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return None if count < 0 else buffer.value.decode()


def _packs(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Runs of neighbouring indices whose lengths add up to at most `most`; an overlong one stands alone."""
    pack: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if pack and (total + length > most or len(pack) == _PACK_SEQUENCES):
            yield pack
            pack, total = [], 0
        pack.append(index)
        total += length
    if pack:
        yield pack
