"""From a Hugging Face folder to a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from stillroom.contracts.errors import StorageFault
from stillroom.gguf.families import family_of, head_size, write_hyperparameters
from stillroom.gguf.mixes import MixRow, mix_of, plan_mix
from stillroom.gguf.rope import write_rope
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.tensors import PlannedTensor, plan_tensors
from stillroom.gguf.vocabulary import Vocabulary, read_vocabulary
from stillroom.quants import block_format, quantise, row_size


def convert(
    folder: ModelFolder, out: Path, kind: str, *, threads: int | None = None
) -> tuple[list[MixRow], Vocabulary]:
    """Writes `folder` to `out`, whole or not at all.

    The file grows under the name `out` + ".part" and takes its real name once it is complete and on disk. What an
    ordinary failure leaves is removed here; what a killed process leaves, by the next conversion to the same name.

    Args:
        kind: a name in `stillroom.gguf.mixes.MIXES`.
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
        _write(folder, part, kind, planned, mix, vocabulary, threads)
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
    threads: int | None,
) -> None:
    family, config = family_of(folder), folder.config
    writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[family.arch])
    try:
        writer.add_name(" ".join(filter(None, (folder.path.resolve().name, vocabulary.alias))))
        writer.add_file_type(int(mix_of(kind).file_type))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_hyperparameters(writer, family, config)
        write_rope(writer, config, head_size(config))
        vocabulary.write(writer)
        for tensor, row in zip(planned, mix, strict=True):
            width = row_size(row.kind, tensor.shape[-1])
            stored = gguf.GGMLQuantizationType(block_format(row.kind).ggml_type)
            writer.add_tensor_info(
                tensor.name, (*tensor.shape[:-1], width), np.dtype(np.uint8), row.bytes, raw_dtype=stored
            )
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, row in zip(planned, mix, strict=True):
            values = tensor.read()
            writer.write_tensor_data(
                quantise(values.reshape(-1, values.shape[-1]), row.kind, threads=threads)
            )
        writer.flush()
        for file in writer.fout or []:
            os.fsync(file.fileno())
    finally:
        writer.close()
