"""GGUF files on disk: known to the byte before they are written, whole under their name, or not there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import ModelError, StorageFault
from stillroom.quants import block_format, quantise, row_size

FloatArray = npt.NDArray[np.float32]
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_PIECE_BYTES = 64 << 20
"""Float32 bytes of a tensor that are quantised and written at once."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: what it is called, its shape and format, and how to get its float32 values."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], FloatArray]

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
    """Writes a file, whole or not at all, one tensor in memory at a time.

    It grows under the name `out` + ".part" and takes its real name once it is complete and on disk. What an ordinary
    failure leaves is removed here; what a killed process leaves, by the next writing to the same name.

    Args:
        out: the file's real name.
        head: what `file_head` made of the same tensors.
        weigh: the importance of columns, for the block quantisers.
        stored: blocks that lie ready, which are written as they are.
        threads: for the block quantisers; default one a core.

    Raises:
        ModelError: a weight is infinite or not a number.
        StorageFault: the file cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            _write_behind(file, _pieces(head, tensors, weigh, stored, threads))
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


def _pieces(
    head: bytes,
    tensors: Sequence[StoredTensor],
    weigh: Weigh | None,
    stored: Stored | None,
    threads: int | None,
) -> Iterator[bytes | memoryview]:
    """The file, from its first byte to its last."""
    yield head
    for tensor in tensors:
        blocks = stored(tensor.name, tensor.kind) if stored else None
        if blocks is None:
            yield from _rounded(tensor, weigh, threads)
        else:
            yield np.ascontiguousarray(blocks).data
        yield bytes(_padding(tensor.bytes))


def _rounded(tensor: StoredTensor, weigh: Weigh | None, threads: int | None) -> Iterator[memoryview]:
    """A tensor's blocks, so many rows at a time."""
    values = tensor.read()
    matrix = values.reshape(-1, values.shape[-1])
    columns = matrix.shape[1]
    importance = weigh(tensor.name, columns) if weigh and values.ndim > 1 else None
    step = max(1, _PIECE_BYTES // (4 * columns))
    for first in range(0, len(matrix), step):
        piece = matrix[first : first + step]
        yield quantise(piece, tensor.kind, importance=importance, threads=threads).data


def _write_behind(file: BinaryIO, pieces: Iterator[bytes | memoryview]) -> None:
    """Writes each piece while the next is made; no more than the two are held."""
    with ThreadPoolExecutor(1) as writer:
        written = None
        for piece in pieces:
            if written:
                written.result()
            written = writer.submit(file.write, piece)
        if written:
            written.result()


def _padding(size: int) -> int:
    """How many bytes `size` bytes are short of whole units of alignment."""
    return -size % _ALIGNMENT
