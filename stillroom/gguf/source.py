"""A Hugging Face model folder, read tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from stillroom.contracts.errors import ModelError


@dataclass(frozen=True)
class SourceTensor:
    """Where one tensor lies and how large it is."""

    name: str
    file: Path
    shape: tuple[int, ...]


class ModelFolder:
    """Configuration and weights of a model folder; weights stay on disk until asked for.

    Raises:
        ModelError: no configuration, no safetensors weights, or a shard that is missing or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise ModelError(
                "this is not a model folder",
                got=self.path,
                expected="a folder with config.json",
                do="give the folder that save_pretrained wrote",
            )
        try:
            self.config: PretrainedConfig = AutoConfig.from_pretrained(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError("the model's config.json cannot be read", got=f"{self.path}: {error}") from error
        self.architecture: str = (self.config.architectures or ["?"])[0]
        self.tensors = {tensor.name: tensor for file in self._files() for tensor in _list_tensors(file)}

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its own type; its values stay in the file until they are looked at."""
        with safe_open(self.tensors[name].file, framework="pt") as weights:
            return weights.get_tensor(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty when the folder has none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _files(self) -> list[Path]:
        """The weight files: those that the index names where there is one."""
        index = self.read_json("model.safetensors.index.json")
        names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing:
            raise ModelError(
                "the model's weights are not all there",
                got=f"{self.path} without {', '.join(missing[:3])}",
                expected="model.safetensors, or every shard of model.safetensors.index.json",
                do="copy the folder again; pickled .bin weights must first be saved as safetensors",
            )
        return [self.path / name for name in names]


def _list_tensors(file: Path) -> list[SourceTensor]:
    try:
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
            return [SourceTensor(name, file, tuple(weights.get_slice(name).get_shape())) for name in names]
    except SafetensorError as error:
        raise ModelError(
            "a file of weights is damaged", got=f"{file}: {error}", do="copy it again from where it came"
        ) from error
