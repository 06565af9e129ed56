"""A student that computes with what its weights become in a quantised model file, while its own weights train.

Quantisation-aware training: Jacob et al., arXiv 1712.05877; with a teacher, Liu et al. (LLM-QAT), arXiv 2305.17888.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from stillroom.contracts.errors import ModelError
from stillroom.quants.blockfile import write_blocks
from stillroom.quants.coded import code, simulate
from stillroom.training.objective import decoder_of


@dataclass(frozen=True)
class _Matrix:
    """One matrix of the student, its format, and every layer that reads it: tied ones are two."""

    kind: str
    readers: tuple[nn.Module, ...]
    adapter: Any | None
    """The layer of low-rank adapters around it."""

    @property
    def weight(self) -> nn.Parameter:
        """Its own weights [rows, columns], as they are trained."""
        return self.readers[0]._parameters["weight"]  # type: ignore[return-value]

    def whole(self) -> Tensor:
        """float32 [rows, columns]: its own weights and what the adapters add; the sum is what is quantised."""
        weight = self.weight.float()
        for name in self.adapter.active_adapters if self.adapter is not None else ():
            weight = weight + self.adapter.get_delta_weight(name).float()  # type: ignore[union-attr]
        return weight

    @property
    def trains(self) -> bool:
        return self.adapter is not None or self.weight.requires_grad


class Simulated:
    """While it is open, every forward pass of the student runs on its quantised weights, and gradients go straight through.

    The parameters stay what they are: optimiser and checkpoints see them alone. What a layer reads as its `weight` is
    laid over them and made anew before each forward pass; it stays until the next, for checkpointed activations are
    computed again in the backward pass. Adapters are silent meanwhile, their product being part of that weight.

    Args:
        student: the causal language model, with or without adapters; float32.
        formats: block format of each matrix, by the name of the parameter. Others stay as they are.

    Raises:
        ModelError: the student has no such parameter, or its rows are not whole blocks.
    """

    def __init__(self, student: Any, formats: Mapping[str, str]) -> None:
        self.student = student
        self._matrices = {name: _matrix(decoder_of(student), name, kind) for name, kind in formats.items()}
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._hook = self.student.register_forward_pre_hook(lambda *_: self._refresh())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        for matrix in self._matrices.values():
            for layer in matrix.readers:
                layer.__dict__.pop("weight", None)
            if matrix.adapter is not None:
                matrix.adapter.enable_adapters(True)

    def _refresh(self) -> None:
        for matrix in self._matrices.values():
            if matrix.adapter is not None:
                _silence(matrix.adapter)
            laid = matrix.readers[0].__dict__.get("weight")
            if laid is not None and laid.device == matrix.weight.device and not matrix.trains:
                continue
            weight = simulate(matrix.whole(), matrix.kind)
            for layer in matrix.readers:
                layer.__dict__["weight"] = weight  # found before the parameter of that name

    @torch.no_grad()
    def settle(self, folder: Path) -> Any:
        """The student as a plain model whose weights are the quantised ones, their blocks being written to the folder.

        The student itself is changed: this is the end of its training.

        Args:
            folder: where the file of blocks goes (`stillroom.quants.blockfile`).

        Raises:
            ModelError: a weight is infinite or not a number.
        """
        blocks: dict[str, Tensor] = {}
        for name, matrix in self._matrices.items():
            whole = matrix.whole()
            if not torch.isfinite(whole).all():
                raise ModelError(
                    "the training went astray",
                    got=f"{name} holds infinities or NaN",
                    do="lower the learning rate of `aware`",
                )
            packed, values = code(
                whole, matrix.kind
            )  # where it trained: sums elsewhere may differ in a last bit
            blocks[name] = packed.cpu()
            matrix.weight.copy_(values)
        write_blocks(folder, blocks, {name: matrix.kind for name, matrix in self._matrices.items()})
        return self.student.unload() if hasattr(self.student, "unload") else self.student


def _matrix(decoder: nn.Module, name: str, kind: str) -> _Matrix:
    try:
        layer: Any = decoder.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        layer = None
    adapter = layer if hasattr(layer, "base_layer") else None
    base = layer.base_layer if adapter is not None else layer
    weight = getattr(base, "_parameters", {}).get("weight")
    if weight is None:
        raise ModelError("the student lacks a matrix of its model file", got=name)
    others = [one for one in decoder.modules() if one._parameters.get("weight") is weight and one is not base]
    return _Matrix(kind, (base, *others), adapter)


def _silence(adapter: Any) -> None:
    """Keep a layer's adapters out of its forward pass, but let them train."""
    if not adapter.disable_adapters:
        adapter.enable_adapters(False)
        for name in adapter.adapter_layer_names:
            getattr(adapter, name).requires_grad_(True)
