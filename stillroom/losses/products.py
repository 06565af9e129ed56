"""Matrix products of halves and wider floats, and in which dtype they leave.

All of them sum in at least fp32. On CUDA products of halves leave in fp32. A CPU has no such product in PyTorch:
there products of bf16 leave rounded to bf16, as from any bf16 layer, wherever the CPU computes them faster than
those in fp32, and everything else is widened first. Hidden states in fp32 buy logits that are not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses.divergences import widened

_HALVES = (torch.float16, torch.bfloat16)
_BLOCK = (
    1 << 18
)  # elements of a sum that are added to at a time, so that the product added stays in a CPU's cache


def operand(tensor: Tensor, hidden: Tensor) -> Tensor:
    """The tensor in the dtype in which products with these hidden states are taken."""
    return (
        tensor.to(hidden.dtype) if _leaves_wide(hidden) or _leaves_half(hidden) else tensor.to(_wide(hidden))
    )


def product_dtype(a: Tensor) -> torch.dtype:
    """The dtype in which a product of such operands leaves."""
    return a.dtype if _leaves_half(a) else _wide(a)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in `product_dtype`, into `out` if given."""
    if _leaves_wide(a):
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    if _leaves_half(a):
        return torch.mm(a, b, out=out)
    return torch.mm(widened(a), widened(b), out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """total += scale * a @ b, without a second buffer of that size where the device can."""
    if _leaves_wide(a):
        total.add_(torch.mm(a, b, out_dtype=torch.float32), alpha=scale)
    elif _leaves_half(a):
        rows = max(1, _BLOCK // total.shape[1])
        for part, some in zip(total.split(rows), a.split(rows), strict=True):
            part.add_(some @ b, alpha=scale)
    else:
        total.addmm_(widened(a), widened(b), alpha=scale)


def scaled(total: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """total * factor in this dtype, with no buffer between; `total` itself where nothing is to be done.

    Of that, as the gradient of a parameter, autograd makes no second copy either.
    """
    if total.dtype == dtype:
        return total if factor.is_cpu and factor == 1 else total * factor
    out = torch.empty_like(total, dtype=dtype)
    rows = max(1, _BLOCK * total.shape[0] // max(1, total.numel()))
    for part, some in zip(out.split(rows), total.split(rows), strict=True):
        part.copy_(some * factor)
    return out


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _leaves_wide(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in _HALVES


def _leaves_half(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype == torch.bfloat16
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )
