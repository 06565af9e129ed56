"""What llama.cpp rounds when it runs an unquantised file on a processor, done to the folder's model.

With float16 weights it rounds what they multiply to float16 as well, and it looks GELU up in a table of float16 values. A
model that does the same differs from the file only where the conversion went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import torch
from transformers.activations import GELUTanh

F16 = int(gguf.LlamaFileType.MOSTLY_F16)


def rounds(model: Any, file_type: int) -> bool:
    """Whether llama.cpp computes in float16 anywhere when it runs an unquantised file of this model."""
    return file_type == F16 or any(_table_users(model))


def round_matrices(model: Any) -> None:
    """Round a model's matrices to float16, as they stand in an F16 file; they stay rounded."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.half().float()


@contextmanager
def rounded_arithmetic(model: Any, file_type: int) -> Iterator[None]:
    """Inside, the model rounds what llama.cpp rounds, beside the matrices themselves."""
    users = list(_table_users(model))
    exact = [module.act_fn for module in users]
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].half().float(), *inputs[1:]))
        for module in model.modules()
        if file_type == F16 and isinstance(module, torch.nn.Linear)
    ]
    for module in users:
        module.act_fn = _TableGelu()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, activation in zip(users, exact, strict=True):
            module.act_fn = activation


def _table_users(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(getattr(module, "act_fn", None), GELUTanh))


class _TableGelu(torch.nn.Module):
    """GELU as llama.cpp's CPU code has it: values of float16 arguments, in float16, between -10 and 10."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        listed = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, 0.0, listed))
