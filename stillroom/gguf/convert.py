"""From a Hugging Face folder to a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from stillroom.contracts.errors import StorageFault
from stillroom.gguf.architectures import PlannedTensor, architecture_of, plan_tensors, write_hyperparameters
from stillroom.gguf.importance import ImportanceMatrix
from stillroom.gguf.mixes import MixRow, Network, mix_of, plan_mix
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.vocabulary import Vocabulary, read_vocabulary
from stillroom.quants import block_format, quantise, row_size

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_PIECE_BYTES = 64 << 20
"""Float32 bytes of a tensor that are quantised and written at once."""


@dataclass(frozen=True)
class FilePlan:
    """A model file before any of it is written."""

    kind: str
    tensors: Sequence[PlannedTensor]
    mix: list[MixRow]
    """The format of every tensor, in the order of the file."""
    vocabulary: Vocabulary
    head: bytes
    """All that comes before the first tensor."""

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.head) + sum(row.bytes + _padding(row.bytes) for row in self.mix)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.mix)


def plan_file(folder: ModelFolder, kind: str, *, weighed_by: str | None = None) -> FilePlan:
    """What the file of a folder will hold; nothing is written and no weight is read.

    Args:
        kind: a name in `stillroom.gguf.mixes.MIXES`.
        weighed_by: source of the importance matrix that the weights will be quantised with; None: without one.

    Raises:
        ModelError: the folder, its tokenizer or its architecture cannot be converted.
    """
    vocabulary = read_vocabulary(folder)
    planned = plan_tensors(folder)
    config = folder.config
    weighed_by = weighed_by if mix_of(kind).weighs else None
    network = Network.of(
        architecture_of(folder).gguf_arch,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        weighed=weighed_by is not None,
    )
    mix = plan_mix([(tensor.name, tensor.shape) for tensor in planned], kind, network)
    head = _head(folder, kind, planned, mix, vocabulary, weighed_by)
    return FilePlan(kind, planned, mix, vocabulary, head)


def write_file(
    plan: FilePlan, out: Path, *, importance: ImportanceMatrix | None = None, threads: int | None = None
) -> None:
    """Writes a planned file to `out`, whole or not at all.

    The file grows under the name `out` + ".part" and takes its real name once it is complete and on disk. What an
    ordinary failure leaves is removed here; what a killed process leaves, by the next conversion to the same name.

    Args:
        importance: the matrix whose source the plan names.
        threads: for the block quantisers; default one a core.

    Raises:
        ModelError: a weight is no number, or the matrix is of another model.
        StorageFault: the file cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            _write_behind(file, _pieces(plan, importance, threads))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)
    except OSError as error:
        raise StorageFault(
            "the model file could not be written",
            got=f"{out}: {error.strerror or error}",
            expected=f"{plan.bytes / 1e9:.2f} GB free and a folder that may be written to",
            do="free some space or choose another folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _pieces(
    plan: FilePlan, importance: ImportanceMatrix | None, threads: int | None
) -> Iterator[bytes | memoryview]:
    """The file, from its first byte to its last."""
    yield plan.head
    for tensor, row in zip(plan.tensors, plan.mix, strict=True):
        values = tensor.read()
        matrix = values.reshape(-1, values.shape[-1])
        columns = matrix.shape[1]
        weights = importance.columns(tensor.name, columns) if importance and values.ndim > 1 else None
        step = max(1, _PIECE_BYTES // (4 * columns))
        for first in range(0, len(matrix), step):
            piece = matrix[first : first + step]
            yield quantise(piece, row.kind, importance=weights, threads=threads).data
        yield bytes(_padding(row.bytes))


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


def _head(
    folder: ModelFolder,
    kind: str,
    planned: Sequence[PlannedTensor],
    mix: Sequence[MixRow],
    vocabulary: Vocabulary,
    weighed_by: str | None,
) -> bytes:
    """The file's metadata and list of tensors, padded to where the first tensor begins."""
    architecture = architecture_of(folder).gguf_arch
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(folder.path.resolve().name)
    writer.add_file_type(int(mix_of(kind).file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if weighed_by is not None:
        writer.add_string("quantize.imatrix.dataset", weighed_by)
    write_hyperparameters(writer, folder)
    vocabulary.write(writer)
    for tensor, row in zip(planned, mix, strict=True):
        width = row_size(row.kind, tensor.shape[-1])
        stored = gguf.GGMLQuantizationType(block_format(row.kind).ggml_type)
        writer.add_tensor_info(
            tensor.name, (*tensor.shape[:-1], width), np.dtype(np.uint8), row.bytes, raw_dtype=stored
        )
    return head_bytes(writer)


def head_bytes(writer: gguf.GGUFWriter) -> bytes:
    """What a writer of planned tensors puts in front of them, padding included."""
    memory = io.BytesIO()
    # The package writes to files only, which it opens itself unless they are there and still empty.
    writer.fout, writer.state = [memory], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head = memory.getvalue()
    return head + bytes(_padding(len(head)))


def _padding(size: int) -> int:
    """How many bytes `size` bytes are short of whole units of alignment."""
    return -size % _ALIGNMENT
