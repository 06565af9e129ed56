"""Matrices that were trained as blocks, kept beside a model's weights until they are written into a model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

NAME = "blocks.safetensors"
"""In a model folder: the blocks of each matrix by its name; `formats` of the metadata is {name: format} as JSON."""


def write_blocks(folder: Path, blocks: Mapping[str, Tensor], formats: Mapping[str, str]) -> None:
    """Write the file.

    Args:
        folder: the model's.
        blocks: uint8 [rows, bytes of a row] by name.
        formats: a name in `stillroom.quants.FORMATS` for each.
    """
    save_file(dict(blocks), folder / NAME, {"formats": json.dumps(dict(formats))})


class BlockFile:
    """The file of a model folder; blocks stay on disk until asked for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        with safe_open(self.path, framework="np") as file:
            self.formats: dict[str, str] = json.loads(file.metadata()["formats"])

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The blocks of a matrix, [rows, bytes of a row]."""
        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(name)
