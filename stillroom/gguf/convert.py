"""From a Hugging Face folder to a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf

from stillroom.gguf.families import family_of, head_size, write_hyperparameters
from stillroom.gguf.files import StoredTensor, write_tensors, written_whole
from stillroom.gguf.mixes import MixRow, mix_of, plan_mix
from stillroom.gguf.rope import write_rope
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.tensors import plan_tensors
from stillroom.gguf.vocabulary import Vocabulary, read_vocabulary


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
    family, config = family_of(folder), folder.config
    mix = plan_mix(
        [(tensor.name, tensor.shape) for tensor in planned],
        kind,
        layers=config.num_hidden_layers,
        heads_shared=config.num_key_value_heads != config.num_attention_heads,
    )
    with (
        written_whole(out, sum(row.bytes for row in mix)) as part,
        closing(gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[family.arch])) as writer,
    ):
        writer.add_name(" ".join(filter(None, (folder.path.resolve().name, vocabulary.alias))))
        writer.add_file_type(int(mix_of(kind).file_type))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_hyperparameters(writer, family, config)
        write_rope(writer, config, head_size(config))
        vocabulary.write(writer)
        stored = [
            StoredTensor(tensor.name, tensor.shape, row.kind, tensor.read)
            for tensor, row in zip(planned, mix, strict=True)
        ]
        write_tensors(writer, part, stored, threads=threads)
    return mix, vocabulary
