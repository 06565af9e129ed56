"""`export`: a finished model file, with an account of what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillroom.contracts.errors import ModelError
from stillroom.gguf.convert import convert
from stillroom.gguf.mixes import MixRow, mix_of
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.stored import Stored


@dataclass(frozen=True)
class ExportedFile:
    """What was written."""

    path: Path
    kind: str
    bytes: int
    parameters: int
    mix: list[MixRow]
    """The format of every tensor, as it really is."""
    notes: list[str]
    """Known differences between llama.cpp and this model's tokenizer."""

    @property
    def fallbacks(self) -> list[MixRow]:
        """Tensors whose rows did not fit the format that the recipe asks for."""
        return [row for row in self.mix if row.fell_back]

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(row.bytes for row in self.mix) / self.parameters


def export(
    model_dir: str | Path,
    out: str | Path,
    kind: str = "Q4_K_M",
    *,
    stored: Stored | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> ExportedFile:
    """Converts a Hugging Face folder to a GGUF file that llama.cpp and Ollama load.

    Quantised kinds are made from the folder's own weights in float32, not from a float16 file in between. Memory: the
    largest tensor in float32 and as blocks.

    Args:
        model_dir: folder with config.json, safetensors weights and a tokenizer.
        out: file to write.
        kind: F32, F16, Q8_0, Q6_K, Q5_K_M or Q4_K_M.
        stored: blocks that lie ready and are written as they are: `stored_blocks` of a folder whose weights were trained
            as blocks, which quantised again would be others.
        overwrite: replace a file of that name; otherwise it is refused.
        threads: for the block quantisers; default one a core.

    Raises:
        ModelError: the folder cannot be converted, or the file exists.
        StorageFault: the file cannot be written. Nothing is left behind.
    """
    out = Path(out)
    mix_of(kind)
    if out.exists() and not overwrite:
        raise ModelError(
            "there is already a file of this name", got=out, do="choose another name, or allow overwriting"
        )
    folder = ModelFolder(model_dir)
    mix, vocabulary = convert(folder, out, kind, stored=stored, threads=threads)
    return ExportedFile(
        path=out,
        kind=kind,
        bytes=out.stat().st_size,
        parameters=sum(row.parameters for row in mix),
        mix=mix,
        notes=vocabulary.notes,
    )
