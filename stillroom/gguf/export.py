"""`export`: a finished model file, with an account of what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillroom.contracts.files import digest, read_json, storage, write_json
from stillroom.gguf.convert import plan_file, write_file
from stillroom.gguf.families import context_length, family_of
from stillroom.gguf.files import Stored, refuse_existing
from stillroom.gguf.importance import ImportanceMatrix
from stillroom.gguf.rope import original_context
from stillroom.gguf.source import ModelFolder
from stillroom.quants.mixes import MixRow


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
    """Known differences between llama.cpp and this model or its tokenizer."""

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
    importance: ImportanceMatrix | None = None,
    stored: Stored | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> ExportedFile:
    """Converts a Hugging Face folder to a GGUF file that llama.cpp and Ollama load.

    Quantised kinds are made from the folder's own weights in float32, not from a float16 file in between. Where the
    weights are float16 numbers, the bytes are those of llama.cpp's own tool. Memory: at most the largest tensor, as it is.

    Args:
        model_dir: folder with config.json, safetensors weights and a tokenizer.
        out: file to write.
        kind: a name in `MIXES`: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_0, Q3_K_M or Q2_K.
        importance: how much each column matters; default: all alike. F32, F16, BF16 and Q8_0 take no notice of it.
        stored: blocks that lie ready and are written as they are: `stored_blocks` of a folder whose weights were trained
            as blocks, which quantised again would be others.
        overwrite: replace a file of that name; otherwise it is refused.
        threads: for the block quantisers; default one a core.

    Raises:
        ModelError: the folder cannot be converted, or the file exists.
        StorageFault: the file cannot be written. Nothing is left behind.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    folder = ModelFolder(model_dir)
    plan = plan_file(folder, kind, weighed_by=importance.source if importance else None)
    write_file(plan, out, importance=importance, stored=stored, threads=threads)
    return ExportedFile(
        path=out,
        kind=kind,
        bytes=out.stat().st_size,
        parameters=plan.parameters,
        mix=plan.mix,
        notes=[*plan.vocabulary.notes, *_limits(folder)],
    )


def predict_size(model_dir: str | Path, kind: str, *, weighed_by: str | None = None) -> int:
    """Bytes of the file that `export` would write; nothing is written and no weight is read.

    Args:
        model_dir: the folder.
        kind: a name in `MIXES`.
        weighed_by: the `source` of the importance matrix that would be given.

    Raises:
        ModelError: the folder cannot be converted.
    """
    return plan_file(ModelFolder(model_dir), kind, weighed_by=weighed_by).bytes


def _limits(folder: ModelFolder) -> list[str]:
    """What llama.cpp does otherwise with long text."""
    config = folder.config
    context, notes = context_length(family_of(folder), config), []
    if context < config.max_position_embeddings:
        notes.append(
            f"llama.cpp has no sliding window for this family: the file's context is the window, {context} tokens"
        )
    if original := original_context(config):
        notes.append(
            f"with a context above {original} tokens llama.cpp reads short text with the factors for long text too"
        )
    return notes


def export_once(model_dir: str | Path, out: str | Path, kind: str, *, overwrite: bool = False) -> Path:
    """The file of a folder, which is not written again where it was made of the same weights.

    Args:
        model_dir: the folder.
        out: the file; what it was made of is kept beside it, in a hidden file.
        kind: a name in `MIXES`.
        overwrite: replace a file that was made of something else; otherwise it is refused.

    Raises:
        ModelError: the folder cannot be converted, or another file has the name.
        StorageFault: the file cannot be written.
    """
    out = Path(out)
    mark, made = out.with_name(f".{out.name}.json"), {"made of": digest(Path(model_dir)), "kind": kind}
    if not (out.is_file() and mark.is_file() and read_json(mark) == made):
        refuse_existing(out, overwrite)
        # The mark first, while there is no file: one that appears is whole and of this mark, whenever we are stopped.
        with storage(out):
            out.unlink(missing_ok=True)
        write_json(mark, made)
        export(model_dir, out, kind)
    return out
