"""Block formats of GGUF files: how a row of weights becomes bytes and back.

A row of n float32 values is cut into blocks of 32 or 256; a block is stored as small integers with scales. The work
is done by ggml's own routines (`ggml_quantize_chunk`, `dequantize_row_*`), so the bytes are those that llama.cpp's
own tool writes. ctypes releases the GIL during a call, so rows are shared out over threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import ModelError
from stillroom.quants.library import load_library


@dataclass(frozen=True)
class BlockFormat:
    """One storage format. Sizes as in ggml's `ggml-common.h`."""

    name: str
    ggml_type: int
    """Number of the format in `enum ggml_type`."""
    values: int
    """Weights in a block."""
    size: int
    """Bytes of a block."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.values


FORMATS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("F32", 0, 1, 4),
        BlockFormat("F16", 1, 1, 2),
        BlockFormat("BF16", 30, 1, 2),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q5_1", 7, 32, 24),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q3_K", 11, 256, 110),
        BlockFormat("Q2_K", 10, 256, 84),
    )
}

_ROWS_A_TASK_BYTES = 1 << 20
"""Float32 bytes handed to a thread at once: large against a ctypes call, small enough to be shared out
evenly and to stay in a core's cache from the check of its numbers to their rounding."""


def block_format(kind: str) -> BlockFormat:
    """The format called `kind`; ModelError when there is none."""
    try:
        return FORMATS[kind]
    except KeyError:
        raise ModelError(
            "unknown block format",
            got=kind,
            expected="one of " + ", ".join(FORMATS),
            do="choose a listed format",
        ) from None


def row_size(kind: str, columns: int) -> int:
    """Bytes of one row of `columns` weights stored as `kind`; ModelError when the row is not whole blocks."""
    form = block_format(kind)
    if columns <= 0 or columns % form.values:
        raise ModelError(
            f"a row of weights cannot be stored as {kind}",
            got=f"{columns} columns",
            expected=f"a multiple of {form.values}",
            do="use a format with smaller blocks (Q8_0 and Q5_0 take 32, F16 takes any)",
        )
    return columns // form.values * form.size


def not_finite() -> ModelError:
    """What is said of weights that no file should hold."""
    return ModelError("the weights hold infinities or NaN", do="train again or pick an earlier checkpoint")


def quantise(
    weights: npt.NDArray[np.float32],
    kind: str,
    *,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Rows of weights as blocks.

    Args:
        weights: [rows, columns] float32, finite.
        kind: a name in `FORMATS`.
        importance: [columns] float32, not negative: how much an error of a column's weights costs, such as the mean
            square of what they are multiplied by. Default: ggml's own guess, from the weights. Formats of 16 and more
            bits, and Q8_0, round alike with and without.
        threads: how many rows' worth of work runs at once; default one a core.

    Returns:
        [rows, row_size(kind, columns)] uint8, as it stands in a GGUF file.

    Raises:
        ModelError: rows that are not whole blocks, or a weight that is infinite or not a number.
        ValueError: weights or importance of another shape, or an importance that is negative or no number.
    """
    if weights.ndim != 2:
        raise ValueError(f"weights must be [rows, columns], got shape {weights.shape}")
    source = np.ascontiguousarray(weights, dtype=np.float32)
    rows, columns = source.shape
    width, scale = row_size(kind, columns), None
    if importance is not None:
        scale = np.ascontiguousarray(importance, dtype=np.float32)
        if scale.shape != (columns,) or not (np.isfinite(scale) & (scale >= 0)).all():
            raise ValueError(f"importance must be [{columns}] numbers of 0 and more, got {scale.shape}")
    form = block_format(kind)
    out = np.empty((rows, width), dtype=np.uint8)
    chunk = _quantize_chunk()

    def work(first: int, count: int) -> None:
        piece = source[first : first + count]
        if not np.isfinite(piece).all():
            raise not_finite()
        written = chunk(
            form.ggml_type,
            piece.ctypes.data,
            out[first:].ctypes.data,
            0,
            count,
            columns,
            None if scale is None else scale.ctypes.data,
        )
        assert written == count * width, (kind, written, count * width)

    _over_rows(work, rows, columns, threads)
    return out


def dequantise(
    blocks: npt.NDArray[np.uint8], kind: str, columns: int, *, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Blocks as rows of weights, the inverse of `quantise` up to rounding.

    Args:
        blocks: [rows, row_size(kind, columns)] uint8.
        columns: weights in a row.

    Returns:
        [rows, columns] float32.
    """
    source = np.ascontiguousarray(blocks, dtype=np.uint8)
    width = row_size(kind, columns)
    if source.ndim != 2 or source.shape[1] != width:
        raise ValueError(
            f"{kind} rows of {columns} weights take {width} bytes each, got shape {source.shape}"
        )
    if kind == "F32":
        return source.view(np.float32).copy()
    if kind == "F16":
        return source.view(np.float16).astype(np.float32)
    if kind == "BF16":
        return (source.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    out = np.empty((source.shape[0], columns), dtype=np.float32)
    to_float = _dequantize_row(kind)

    def work(first: int, count: int) -> None:
        to_float(source[first:].ctypes.data, out[first:].ctypes.data, count * columns)

    _over_rows(work, len(source), columns, threads)
    return out


def simulate(
    weights: npt.NDArray[np.float32],
    kind: str,
    *,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.float32]:
    """What `weights` [rows, columns] become after a trip through `kind`, by ggml's own quantiser.

    Quantising the result again moves values. Training has `stillroom.quants.coded.simulate`, with gradients.
    """
    blocks = quantise(weights, kind, importance=importance, threads=threads)
    return dequantise(blocks, kind, weights.shape[1], threads=threads)


def _over_rows(work: Callable[[int, int], None], rows: int, columns: int, threads: int | None) -> None:
    """Calls work(first row, count) over all rows, in threads when there is enough to share."""
    step = max(1, _ROWS_A_TASK_BYTES // (4 * columns))
    spans = [(first, min(step, rows - first)) for first in range(0, rows, step)]
    workers = min(threads or os.cpu_count() or 1, len(spans))
    if workers <= 1:
        for span in spans:
            work(*span)
        return
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work, *span) for span in spans]:
            future.result()


def _quantize_chunk() -> Callable[..., int]:
    function = load_library().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return function


def _dequantize_row(kind: str) -> Callable[..., None]:
    # K-quants keep their capital in the symbol: dequantize_row_q4_K.
    function = load_library()["dequantize_row_q" + kind[1:]]
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function
