"""GGUF files on disk: known to the byte before they are written, whole under their name, or not there."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from stillroom.contracts.errors import ModelError, StorageFault
from stillroom.quants import block_format, not_finite, quantise, row_size

FloatArray = npt.NDArray[np.float32]
Piece = bytes | memoryview
_WIDE = {
    "F32": (torch.float32, torch.uint32, 0x7F800000),
    "F16": (torch.float16, torch.uint16, 0x7C00),
    "BF16": (torch.bfloat16, torch.uint16, 0x7F80),
}
"""Formats whose values are a type of their own: that type, its bits as a number, and the exponent of what is not finite."""
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_PIECE_WEIGHTS = 1 << 18
"""Weights that a thread rounds at once: many against a call's own cost, few enough that they stay in a core's cache
from their conversion to float32 to their rounding."""
_PIECES_A_THREAD = 16
"""Pieces that may be ordered and not yet written, for each thread."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: what it is called, its shape and format, and how to get its values, of any float type."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """Bytes in the file, without what fills up to the next tensor."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * row_size(self.kind, self.shape[-1])


Weigh = Callable[[str, int], FloatArray | None]
"""The importance of a tensor's columns, by its name and their number; None: all alike."""
Stored = Callable[[str, str], npt.NDArray[np.uint8] | None]
"""The blocks of a tensor of the file, by its name there and its format; None where none lie ready."""


def refuse_existing(out: Path, overwrite: bool) -> None:
    """ModelError where a file is already there and may not be replaced."""
    if out.exists() and not overwrite:
        raise ModelError(
            "there is already a file of this name", got=out, do="choose another name, or remove it"
        )


def file_head(writer: gguf.GGUFWriter, tensors: Sequence[StoredTensor]) -> bytes:
    """All that comes before the first tensor: the writer's keys and the list of tensors."""
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            (*tensor.shape[:-1], row_size(tensor.kind, tensor.shape[-1])),
            np.dtype(np.uint8),
            tensor.bytes,
            raw_dtype=gguf.GGMLQuantizationType(block_format(tensor.kind).ggml_type),
        )
    memory = io.BytesIO()
    # The package writes to files only, which it opens itself unless they are there and still empty.
    writer.fout, writer.state = [memory], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head = memory.getvalue()
    return head + bytes(_padding(len(head)))


def file_size(head: bytes, tensors: Sequence[StoredTensor]) -> int:
    """Bytes of the file that `write_whole` writes."""
    return len(head) + sum(tensor.bytes + _padding(tensor.bytes) for tensor in tensors)


def write_whole(
    out: Path,
    head: bytes,
    tensors: Sequence[StoredTensor],
    *,
    weigh: Weigh | None = None,
    stored: Stored | None = None,
    threads: int | None = None,
) -> None:
    """Writes a file, whole or not at all, a few megabytes of it in memory at a time.

    It grows under the name `out` + ".part" and takes its real name once it is complete and on disk. What an ordinary
    failure leaves is removed here; what a killed process leaves, by the next writing to the same name.

    Args:
        out: the file's real name.
        head: what `file_head` made of the same tensors.
        weigh: the importance of columns, for the block quantisers.
        stored: blocks that lie ready, which are written as they are.
        threads: that convert and round; default one a core. This one writes what they have made.

    Raises:
        ModelError: a weight is infinite or not a number.
        StorageFault: the file cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(head)
            workers = threads or os.cpu_count() or 1
            with ThreadPoolExecutor(workers) as pool:
                orders = _orders(tensors, weigh, stored)
                for piece in _in_order(pool, orders, workers * _PIECES_A_THREAD):
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)
    except OSError as error:
        raise StorageFault(
            "the model file could not be written",
            got=f"{out}: {error.strerror or error}",
            expected=f"{file_size(head, tensors) / 1e9:.2f} GB free and a folder that may be written to",
            do="free some space or choose another folder",
        ) from error
    finally:
        with suppress(OSError):  # where nothing may be written nothing was left, and why is being told
            part.unlink(missing_ok=True)


def _orders(
    tensors: Sequence[StoredTensor], weigh: Weigh | None, stored: Stored | None
) -> Iterator[Callable[[], Piece]]:
    """What makes each piece of the file after its head, from first to last."""
    for tensor in tensors:
        blocks = stored(tensor.name, tensor.kind) if stored else None
        if blocks is None:
            yield from _roundings(tensor, weigh)
        else:
            rows = max(1, _PIECE_WEIGHTS // tensor.shape[-1])
            yield from (blocks[first : first + rows].tobytes for first in range(0, len(blocks), rows))
        yield partial(bytes, _padding(tensor.bytes))


def _roundings(tensor: StoredTensor, weigh: Weigh | None) -> Iterator[Callable[[], Piece]]:
    """What makes a tensor's blocks, so many rows at a time."""
    values = tensor.read()
    matrix = values.reshape(-1, values.shape[-1])
    columns = matrix.shape[1]
    importance = weigh(tensor.name, columns) if weigh and values.ndim > 1 else None

    same = tensor.kind in _WIDE and values.dtype == _WIDE[tensor.kind][0]

    def rounded(rows: torch.Tensor) -> Piece:
        return quantise(_as_float32(rows), tensor.kind, importance=importance, threads=1).data

    for rows in matrix.split(max(1, _PIECE_WEIGHTS // columns)):
        yield partial(_copied, rows, tensor.kind) if same else partial(rounded, rows)


def _copied(rows: torch.Tensor, kind: str) -> Piece:
    """The rows as they are; ModelError where one of their values is no finite number."""
    _, bits, exponent = _WIDE[kind]
    numbers = rows.contiguous().view(bits).numpy()
    if (numbers & exponent == exponent).any():
        raise not_finite()
    return numbers.tobytes()


def _as_float32(values: torch.Tensor) -> FloatArray:
    """The values in float32, without torch's own threads: those that call this are as many as there should be."""
    if values.dtype == torch.bfloat16:  # the upper half of a float32
        wide = values.view(torch.uint16).numpy().astype(np.uint32)
        return np.left_shift(wide, 16, out=wide).view(np.float32)
    if values.dtype in (torch.float16, torch.float32):
        return values.numpy().astype(np.float32, copy=False)
    return values.float().numpy()


def _in_order(pool: ThreadPoolExecutor, orders: Iterator[Callable[[], Piece]], most: int) -> Iterator[Piece]:
    """What each order makes, in their order; no more than `most` of them are made or being made ahead."""
    ahead: deque[Future[Piece]] = deque()
    for order in orders:
        if len(ahead) >= most:
            yield ahead.popleft().result()
        ahead.append(pool.submit(order))
    while ahead:
        yield ahead.popleft().result()


def _padding(size: int) -> int:
    """How many bytes `size` bytes are short of whole units of alignment."""
    return -size % _ALIGNMENT
