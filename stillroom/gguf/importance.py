"""How much each column of a model's matrices matters: the mean square of what it is multiplied by.

Rounding a weight moves a matrix's output by the error times the input, so an error in a column whose inputs are large
costs more. llama.cpp calls this an importance matrix (imatrix); files of its format are read and written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from stillroom.contracts.errors import DataError, ModelError
from stillroom.contracts.files import read_lines
from stillroom.contracts.records import Lesson, from_line
from stillroom.gguf.families import family_of
from stillroom.gguf.source import ModelFolder
from stillroom.models.local import LocalModel

TOKENS = 50_000
"""How many tokens are read unless told otherwise. More than this moves the mean squares little."""
_LENGTH = 2048
"""Most tokens of a lesson that are read at once; what comes after them is left out."""


@dataclass(frozen=True)
class ImportanceMatrix:
    """Sums of squared inputs of a model's matrices.

    Order of rows in a matrix does not matter, so those that a conversion reorders need no care.
    """

    source: str
    """What the inputs were taken from: a file's name."""
    sums: dict[str, npt.NDArray[np.float32]]
    """By the tensor's name in GGUF: [columns], squared inputs added up over all tokens."""
    counts: dict[str, int]
    """How many tokens were added up."""

    def columns(self, tensor: str, width: int) -> npt.NDArray[np.float32] | None:
        """Mean squared input of each column, [width] float32; None of a matrix that was not seen, such as an embedding
        that only looks rows up.

        Raises:
            ModelError: the matrix has another width here.
        """
        if tensor not in self.sums:
            return None
        sums = self.sums[tensor]
        if len(sums) != width:
            raise ModelError(
                "the importance matrix is of another model",
                got=f"{len(sums)} columns of {tensor}",
                expected=width,
                do="gather it with the model that is to be quantised",
            )
        return sums / np.float32(self.counts[tensor])

    def write(self, path: Path) -> None:
        """Writes the file that llama.cpp's `llama-imatrix` would, of one chunk; whole or not at all."""
        part = path.with_name(path.name + ".part")
        writer = gguf.GGUFWriter(part, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [self.source])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", max(self.counts.values(), default=0))
        for name, sums in self.sums.items():
            writer.add_tensor(f"{name}.in_sum2", sums.reshape(1, -1))
            writer.add_tensor(f"{name}.counts", np.array([[self.counts[name]]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, path)


def read_importance(path: Path) -> ImportanceMatrix:
    """Reads an importance matrix that `ImportanceMatrix.write` or llama.cpp's `llama-imatrix` wrote.

    Raises:
        ModelError: the file is none, or is that of a mixture of experts.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise _no_matrix(path, str(error)) from error
    tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in reader.tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    counts = {name: tensors.get(f"{name}.counts", np.zeros(0)) for name in names}
    if not names or any(len(count) != 1 or count[0] <= 0 for count in counts.values()):
        raise _no_matrix(path, "no sums of squared inputs with one count each")
    datasets = reader.get_field("imatrix.datasets")
    source = ", ".join(datasets.contents()) if datasets else path.name
    return ImportanceMatrix(
        source,
        {name: tensors[f"{name}.in_sum2"] for name in names},
        {n: int(c[0]) for n, c in counts.items()},
    )


def importance_source(file: Path) -> str:
    """What `importance_from` will name as the source."""
    return read_importance(file).source if file.suffix == ".gguf" else file.name


def importance_from(model_dir: str | Path, file: Path) -> ImportanceMatrix:
    """The importance matrix in a .gguf file; or one gathered over a JSONL file of lessons.

    Raises:
        ModelError: the file is no importance matrix, or the folder cannot be loaded.
        DataError: a line is not a lesson.
    """
    if file.suffix == ".gguf":
        return read_importance(file)
    return gather_importance(model_dir, lessons_of(file), source=file.name)


def gather_importance(
    model_dir: str | Path, lessons: Iterable[Lesson], *, source: str, tokens: int = TOKENS
) -> ImportanceMatrix:
    """Has a model read its lessons and adds up what its matrices are given.

    Lessons are read one at a time; of what passes through, a number a column is kept.

    Args:
        model_dir: the Hugging Face folder.
        lessons: conversations such as it will read and write.
        source: their name, for the record.
        tokens: how many tokens are read at least, if there are as many.

    Raises:
        ModelError: the folder cannot be loaded, or there is nothing to read.
    """
    folder = ModelFolder(model_dir)
    model = LocalModel(model_dir)
    names = gguf.get_tensor_name_map(family_of(folder).arch, folder.config.num_hidden_layers)
    matrices = {
        target: module
        for name, module in model.model.base_model.named_modules(prefix=model.model.base_model_prefix)
        if isinstance(module, torch.nn.Linear) and (target := names.get_name(name)) is not None
    }
    head = "token_embd.weight" if folder.config.tie_word_embeddings else "output.weight"
    sums: dict[str, torch.Tensor] = {}
    seen = 0
    with _watched(matrices, sums), torch.no_grad():
        for lesson in lessons:
            ids = model.renderer.lesson(lesson.messages, lesson.complete, lesson.tools).ids[:_LENGTH]
            inputs = torch.tensor([ids], device=model.device)
            # Not through the head: what it is given is enough, and its logits are most of a small model's work.
            hidden = model.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
            _add(sums, head, hidden)
            seen += len(ids)
            if seen >= tokens:
                break
    model.close()
    if not seen:
        raise ModelError("nothing was read to weigh the columns by", got=source, expected="lessons")
    found = {name: total.cpu().numpy().astype(np.float32) for name, total in sums.items()}
    return ImportanceMatrix(source, found, dict.fromkeys(found, seen))


def lessons_of(file: Path) -> Iterator[Lesson]:
    """The lessons of a JSONL file that are trained on: what is held out for measuring is not looked at.

    Raises:
        DataError: the file is missing, or a line is not a lesson.
    """
    for line in read_lines(file):
        if "messages" not in line:
            raise DataError(
                f"{file} has a line without messages", got=", ".join(line), expected="lines of lessons.jsonl"
            )
        lesson = from_line(Lesson, {"id": "", **line})
        if lesson.split == "train":
            yield lesson


@contextmanager
def _watched(matrices: dict[str, torch.nn.Linear], sums: dict[str, torch.Tensor]) -> Iterator[None]:
    """Adds the squared inputs of the modules to `sums` while it is open."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=f"{name}.weight": _add(sums, name, inputs[0]))
        for name, module in matrices.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(sums: dict[str, torch.Tensor], name: str, inputs: torch.Tensor) -> None:
    """Adds squares of [..., columns] to a float64 sum a column, on the inputs' device."""
    squares = inputs.detach().float().square().flatten(0, -2).sum(0, dtype=torch.float64)
    sums[name] = sums[name] + squares if name in sums else squares


def _no_matrix(path: Path, got: str) -> ModelError:
    return ModelError(
        f"{path} is not an importance matrix",
        got=got,
        expected="a file of llama.cpp's llama-imatrix for a dense model",
        do="gather one from lessons: give a .jsonl file",
    )
