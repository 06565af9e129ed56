"""From a Hugging Face folder to a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

from stillroom.gguf.families import family_of, head_size, write_hyperparameters
from stillroom.gguf.files import Stored, StoredTensor, file_head, file_size, write_whole
from stillroom.gguf.importance import ImportanceMatrix
from stillroom.gguf.rope import write_rope
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.tensors import plan_tensors
from stillroom.gguf.vocabulary import Vocabulary, read_vocabulary
from stillroom.quants.mixes import MixRow, Network, mix_of, plan_mix


@dataclass(frozen=True)
class FilePlan:
    """A model file before any of it is written."""

    tensors: Sequence[StoredTensor]
    mix: list[MixRow]
    """The format of every tensor, in the order of the file."""
    vocabulary: Vocabulary
    head: bytes
    """All that comes before the first tensor."""

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return file_size(self.head, self.tensors)

    @property
    def parameters(self) -> int:
        """Weights in all."""
        return sum(row.parameters for row in self.mix)


def plan_file(folder: ModelFolder, kind: str, *, weighed_by: str | None = None) -> FilePlan:
    """What the file of a folder will hold; nothing is written and no weight is read.

    Args:
        kind: a name in `stillroom.quants.mixes.MIXES`.
        weighed_by: source of the importance matrix that the weights will be quantised with; None: without one.

    Raises:
        ModelError: the folder, its tokenizer or its architecture cannot be converted.
    """
    vocabulary = read_vocabulary(folder)
    planned = plan_tensors(folder)
    family, config = family_of(folder), folder.config
    weighed_by = weighed_by if mix_of(kind).weighs else None
    network = Network.of(
        family.arch,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        weighed=weighed_by is not None,
    )
    mix = plan_mix([(tensor.name, tensor.shape) for tensor in planned], kind, network)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_name(" ".join(filter(None, (folder.path.resolve().name, vocabulary.alias))))
    writer.add_file_type(int(mix_of(kind).file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if weighed_by is not None:
        writer.add_string("quantize.imatrix.dataset", weighed_by)
    write_hyperparameters(writer, family, config)
    write_rope(writer, config, head_size(config))
    vocabulary.write(writer)
    stored = [
        StoredTensor(tensor.name, tensor.shape, row.kind, tensor.read)
        for tensor, row in zip(planned, mix, strict=True)
    ]
    return FilePlan(stored, mix, vocabulary, file_head(writer, stored))


def write_file(
    plan: FilePlan,
    out: Path,
    *,
    importance: ImportanceMatrix | None = None,
    stored: Stored | None = None,
    threads: int | None = None,
) -> None:
    """Writes a planned file to `out`, whole or not at all.

    Args:
        importance: the matrix whose source the plan names.
        stored: blocks that lie ready, which are written as they are.
        threads: for the block quantisers; default one a core.

    Raises:
        ModelError: a weight is no number, or the matrix is of another model.
        StorageFault: the file cannot be written.
    """
    weigh = importance.columns if importance else None
    write_whole(out, plan.head, plan.tensors, weigh=weigh, stored=stored, threads=threads)
