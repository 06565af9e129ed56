"""From a Hugging Face folder to a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from stillroom.contracts.errors import StorageFault
from stillroom.gguf.architectures import PlannedTensor, architecture_of, plan_tensors, write_hyperparameters
from stillroom.gguf.mixes import MixRow, mix_of, plan_mix
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.stored import Stored
from stillroom.gguf.vocabulary import Vocabulary, read_vocabulary
from stillroom.quants import block_format, quantise, row_size


def convert(
    folder: ModelFolder, out: Path, kind: str, *, stored: Stored | None = None, threads: int | None = None
) -> tuple[list[MixRow], Vocabulary]:
    """Writes `folder` to `out`, whole or not at all.

    The file grows under the name `out` + ".part" and takes its real name once it is complete and on disk. What an
    ordinary failure leaves is removed here; what a killed process leaves, by the next conversion to the same name.

    Args:
        kind: a name in `stillroom.gguf.mixes.MIXES`.
        stored: blocks that lie ready, which are written as they are.
        threads: for the block quantisers; default one a core.

    Returns:
        The format of every tensor as written, and the vocabulary.

    Raises:
        ModelError: the folder, its tokenizer or its architecture cannot be converted.
        StorageFault: the file cannot be written.
    """
    vocabulary = read_vocabulary(folder)
    planned = plan_tensors(folder)
    config = folder.config
    mix = plan_mix(
        [(tensor.name, tensor.shape) for tensor in planned],
        kind,
        layers=config.num_hidden_layers,
        heads_shared=config.num_key_value_heads != config.num_attention_heads,
    )
    part = out.with_name(out.name + ".part")
    try:
        _write(folder, part, kind, planned, mix, vocabulary, stored, threads)
        os.replace(part, out)
    except OSError as error:
        raise StorageFault(
            "the model file could not be written",
            got=f"{out}: {error.strerror or error}",
            expected=f"{sum(row.bytes for row in mix) / 1e9:.2f} GB free and a folder that may be written to",
            do="free some space or choose another folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return mix, vocabulary


def _write(
    folder: ModelFolder,
    part: Path,
    kind: str,
    planned: Sequence[PlannedTensor],
    mix: Sequence[MixRow],
    vocabulary: Vocabulary,
    stored: Stored | None,
    threads: int | None,
) -> None:
    architecture = architecture_of(folder).gguf_arch
    writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_name(folder.path.resolve().name)
        writer.add_file_type(int(mix_of(kind).file_type))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_hyperparameters(writer, folder)
        vocabulary.write(writer)
        for tensor, row in zip(planned, mix, strict=True):
            width = row_size(row.kind, tensor.shape[-1])
            ggml_type = gguf.GGMLQuantizationType(block_format(row.kind).ggml_type)
            writer.add_tensor_info(
                tensor.name, (*tensor.shape[:-1], width), np.dtype(np.uint8), row.bytes, raw_dtype=ggml_type
            )
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, row in zip(planned, mix, strict=True):
            blocks = stored(tensor.name, row.kind) if stored else None
            if blocks is None:
                values = tensor.read()
                blocks = quantise(values.reshape(-1, values.shape[-1]), row.kind, threads=threads)
            writer.write_tensor_data(blocks)
        writer.flush()
        for file in writer.fout or []:
            os.fsync(file.fileno())
    finally:
        writer.close()
