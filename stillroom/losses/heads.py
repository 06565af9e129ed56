"""An output head as the fused loss sees it: from hidden states to logits, and gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.divergences import widened
from stillroom.losses.targets import TeacherHead

LoRA = tuple[Tensor, Tensor, float]


@dataclass
class Head:
    """logits = cap(scale * (hidden W' + bias + LoRA)), in at least fp32.

    Operands take the hidden states' dtype, as under autocast, and products leave in fp32. Where the device
    has no product from halves to fp32 (CPUs), halves are widened first.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    lora: LoRA | None = None

    @classmethod
    def of(cls, teacher: TeacherHead) -> Head:
        """The teacher's head, ready to be used many times and without gradients."""
        hidden, bias = teacher.hidden, teacher.bias
        return cls(
            operand(teacher.weight.detach(), hidden),
            None if bias is None else widened(bias.detach()),
            teacher.logit_scale,
            teacher.softcap,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, vocab]`."""
        out = product(hidden, self.weight.T)
        if self.bias is not None:
            out += self.bias
        if self.lora is not None:
            a, b, scale = self.lora
            out += product(product(hidden, a.T).to(b.dtype), b.T) * scale
        if self.logit_scale != 1.0:
            out *= self.logit_scale
        if self.softcap is not None:
            out = out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def before_scaling(self, slope: Tensor, logits: Tensor) -> Tensor:
        """The gradient by the logits, in place made the gradient by `hidden W' + bias + LoRA`."""
        if self.softcap is not None:
            slope.mul_(1 - (logits / self.softcap) ** 2)
        return slope.mul_(self.logit_scale) if self.logit_scale != 1.0 else slope


class HeadGradients:
    """Sums of gradients over chunks, in at least fp32; None for what needs no gradient."""

    def __init__(self, head: Head, hidden: Tensor, needed: Sequence[bool]) -> None:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        a, b, _ = head.lora if head.lora is not None else (None, None, 0.0)

        def zeros(tensor: Tensor | None, wanted: bool) -> Tensor | None:
            return torch.zeros_like(tensor, dtype=wide) if wanted and tensor is not None else None

        self.hidden = zeros(hidden, needed[0])
        self.weight = zeros(head.weight, needed[1])
        self.bias = zeros(head.bias, needed[2])
        self.lora_a, self.lora_b = zeros(a, needed[3]), zeros(b, needed[4])

    def add(self, head: Head, hidden: Tensor, slope: Tensor, rows: Tensor) -> None:
        """Add one chunk: `hidden` are the rows' hidden states, `slope` the gradient before scaling."""
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = operand(slope, hidden)
        if self.hidden is not None:
            self.hidden[rows] = product(slope, head.weight)
        if self.weight is not None:
            accumulate(self.weight, slope.T, hidden)
        if head.lora is None:
            return
        a, b, scale = head.lora
        if self.lora_b is not None:
            accumulate(self.lora_b, slope.T, product(hidden, a.T).to(slope.dtype), scale)
        if self.hidden is not None or self.lora_a is not None:
            down = product(slope, b).to(slope.dtype)
            if self.hidden is not None:
                self.hidden[rows] += product(down, a) * scale
            if self.lora_a is not None:
                accumulate(self.lora_a, down.T, hidden, scale)

    def all(self) -> tuple[Tensor | None, ...]:
        """In the order of `needed`: hidden, weight, bias, LoRA A, LoRA B."""
        return self.hidden, self.weight, self.bias, self.lora_a, self.lora_b


def operand(tensor: Tensor, hidden: Tensor) -> Tensor:
    """The tensor in the dtype in which products with these hidden states are taken."""
    return tensor.to(hidden.dtype) if _halves_to_single(hidden) else tensor.to(widened(hidden).dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in at least fp32, whatever the operands."""
    if _halves_to_single(a):
        return torch.mm(a, b, out_dtype=torch.float32)
    return widened(a) @ widened(b)


def accumulate(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """total += scale * a @ b, without a second buffer of that size where the device can."""
    if _halves_to_single(a):
        total.add_(torch.mm(a, b, out_dtype=torch.float32), alpha=scale)
    else:
        total.addmm_(widened(a), widened(b), alpha=scale)


def _halves_to_single(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.bfloat16)
