"""Where the rows of a model file come from, and blocks that lie ready for it in the model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stillroom.contracts.errors import ModelError
from stillroom.gguf.convert import plan_file
from stillroom.gguf.files import Stored
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.tensors import plan_tensors
from stillroom.quants.blockfile import NAME, BlockFile


@dataclass(frozen=True)
class Origin:
    """The matrix of the folder that a matrix of the file is, and which row of it each row is, int64 [rows]."""

    name: str
    rows: npt.NDArray[np.int64]


class _RowNumbers(ModelFolder):
    """A folder whose tensors read as the numbers of their rows, so that one sees where each row goes."""

    last = ""

    def read(self, name: str) -> torch.Tensor:
        """int64 [rows] or [rows, 1]."""
        self.last = name
        shape = self.tensors[name].shape
        return torch.arange(shape[0]).reshape(-1, *(1 for _ in shape[1:]))


def origins(folder: ModelFolder) -> dict[str, Origin]:
    """Of each matrix of the folder's model file where it comes from, by its name in the file.

    Raises:
        ModelError: the folder cannot be converted, or a matrix is not stored row by row.
    """
    numbered, found = _RowNumbers(folder.path), {}
    for tensor in plan_tensors(numbered):
        if len(tensor.shape) == 1:
            continue
        rows = tensor.read().numpy()
        if rows.shape != (tensor.shape[0], 1) or not np.array_equal(
            np.sort(rows[:, 0]), np.arange(len(rows))
        ):
            raise ModelError(
                "this matrix is not stored row by row, so that its blocks cannot be trained",
                got=tensor.name,
                do="leave `aware` out for this model",
            )
        found[tensor.name] = Origin(numbered.last, rows[:, 0])
    return found


def block_formats(folder: ModelFolder, kind: str) -> dict[str, str]:
    """The block format of each matrix of the folder in a file of some kind, by its name in the folder.

    Args:
        kind: a name in `stillroom.quants.mixes.MIXES`.

    Raises:
        ModelError: as `origins`, or there is no such kind.
    """
    known = origins(folder)
    return {known[row.tensor].name: row.kind for row in plan_file(folder, kind).mix if row.tensor in known}


def stored_blocks(model_dir: Path) -> Stored:
    """The blocks of a folder that a training under simulated quantisation has left.

    Raises:
        ModelError: there are none.
    """
    if not (model_dir / NAME).is_file():
        raise ModelError("there are no blocks in this model folder", got=model_dir, expected=NAME)
    file, known = BlockFile(model_dir), origins(ModelFolder(model_dir))

    def find(tensor: str, kind: str) -> npt.NDArray[np.uint8] | None:
        origin = known.get(tensor)
        if origin is None:
            return None
        trained = file.formats.get(origin.name)
        if trained != kind:
            raise ModelError(
                "the blocks in this model folder are for another kind of file",
                got=f"{tensor}: {trained}",
                expected=kind,
            )
        return file.read(origin.name)[origin.rows]

    return find
