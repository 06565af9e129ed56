"""GGUF files on disk: whole under their name, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from stillroom.contracts.errors import ModelError, StorageFault
from stillroom.quants import block_format, quantise, row_size


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: what it is called, its shape and format, and how to get its float32 values."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], npt.NDArray[np.float32]]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * row_size(self.kind, self.shape[-1])


def refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ModelError(
            "there is already a file of this name", got=out, do="choose another name, or allow overwriting"
        )


@contextmanager
def written_whole(out: Path, size: int) -> Iterator[Path]:
    """The name to write to; it becomes `out` at the end, or is removed with whatever is in it.

    Args:
        out: the file's real name.
        size: bytes it will take, for the error message.

    Raises:
        StorageFault: the file cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        yield part
        os.replace(part, out)
    except OSError as error:
        raise StorageFault(
            "the model file could not be written",
            got=f"{out}: {error.strerror or error}",
            expected=f"{size / 1e9:.2f} GB free and a folder that may be written to",
            do="free some space or choose another folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_tensors(
    writer: gguf.GGUFWriter, file: Path, tensors: Sequence[StoredTensor], *, threads: int | None = None
) -> None:
    """Writes the keys that `writer` holds, then the tensors one after the other, and makes sure of the disk."""
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            (*tensor.shape[:-1], row_size(tensor.kind, tensor.shape[-1])),
            np.dtype(np.uint8),
            tensor.bytes,
            raw_dtype=gguf.GGMLQuantizationType(block_format(tensor.kind).ggml_type),
        )
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        values = tensor.read()
        writer.write_tensor_data(quantise(values.reshape(-1, values.shape[-1]), tensor.kind, threads=threads))
    writer.flush()
    for opened in writer.fout or []:
        os.fsync(opened.fileno())
