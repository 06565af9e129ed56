"""One llama.cpp context: a key-value cache for several sequences and the batch that feeds it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import Fault
from stillroom.models.llama_cpp_binding import FLASH_ATTENTION_OFF, GGML_TYPE_F32, Batch, llama

_INT32_POINTER = ctypes.POINTER(ctypes.c_int32)


class Context:
    """Decodes tokens of many sequences together. Not thread-safe: one owner, one call at a time.

    Args:
        model: pointer to the loaded llama_model, which must outlive this object.
        vocab_size: columns of the logits.
        cells: tokens that the cache holds, over all sequences.
        sequences: how many sequences may live in the cache.
        batch: most tokens in one `decode`.
        threads: CPU threads.
        unified: whether sequences share the cells. Shared cells suit ragged packs that are read once; a share of its
            own for each suits long generation, where attention then skips the other sequences' cells.
        exact: float32 cache and plain attention, for comparisons to 1e-4.
        adapter: pointer to a loaded llama_adapter_lora to lay over the model.
    """

    def __init__(
        self,
        model: int,
        vocab_size: int,
        *,
        cells: int,
        sequences: int,
        batch: int,
        threads: int,
        unified: bool,
        exact: bool,
        adapter: int | None = None,
    ) -> None:
        self._library = llama()
        self.vocab_size, self.batch_size = vocab_size, batch
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, sequences, unified
        params.n_batch = params.n_ubatch = batch
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = GGML_TYPE_F32
            params.flash_attn_type = FLASH_ATTENTION_OFF
        self._pointer = self._library.llama_init_from_model(model, params)
        if not self._pointer:
            raise Fault(
                "llama.cpp could not set up its cache",
                got=f"{cells} tokens, {sequences} sequences",
                do="lower n_ctx or parallel, or free memory",
            )
        if adapter:
            self._library.llama_set_adapters_lora(
                self._pointer, (ctypes.c_void_p * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
            )
        self._memory = self._library.llama_get_memory(self._pointer)
        self._tokens = np.zeros(batch, np.int32)
        self._positions = np.zeros(batch, np.int32)
        self._sequences = np.zeros(batch, np.int32)
        self._sequence_counts = np.ones(batch, np.int32)
        self._outputs = np.zeros(batch, np.int8)
        first = self._sequences.ctypes.data
        self._sequence_pointers = (_INT32_POINTER * batch)(
            *[ctypes.cast(first + 4 * i, _INT32_POINTER) for i in range(batch)]
        )

    def decode(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        positions: Sequence[int] | npt.NDArray[np.int32],
        sequences: Sequence[int] | npt.NDArray[np.int32],
        outputs: Sequence[bool] | npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Runs one batch; all four arguments have one entry a token.

        Returns:
            [number of true outputs, vocab] float32 in the order of the batch: a view of llama.cpp's own buffer, which
            the next call overwrites.
        """
        n = len(tokens)
        assert 0 < n <= self.batch_size, (n, self.batch_size)
        self._tokens[:n], self._positions[:n] = tokens, positions
        self._sequences[:n], self._outputs[:n] = sequences, outputs
        batch = Batch(
            n_tokens=n,
            token=self._tokens.ctypes.data_as(_INT32_POINTER),
            embd=None,
            pos=self._positions.ctypes.data_as(_INT32_POINTER),
            n_seq_id=self._sequence_counts.ctypes.data_as(_INT32_POINTER),
            seq_id=self._sequence_pointers,
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        status = self._library.llama_decode(self._pointer, batch)
        if status:
            reason = "its cache is full" if status == 1 else f"status {status}"
            raise Fault(
                "llama.cpp could not decode a batch",
                got=f"{n} tokens, {reason}",
                do="lower parallel or n_ctx",
            )
        rows = int(self._outputs[:n].sum())
        if not rows:
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._pointer), (rows, self.vocab_size))

    def forget(self, sequence: int) -> None:
        """Drops everything cached for one sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def share(self, sequence: int, other: int) -> None:
        """Lets another sequence go on from everything cached for this one; where cells are shared, none is copied."""
        self._library.llama_memory_seq_cp(self._memory, sequence, other, -1, -1)

    def clear(self) -> None:
        """Drops every sequence."""
        # The data need not be zeroed: cells without a position are masked.
        self._library.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        if self._pointer:
            self._library.llama_free(self._pointer)
            self._pointer = None
