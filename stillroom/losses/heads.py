"""An output head as the fused loss sees it: from hidden states to logits, and gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.divergences import widened
from stillroom.losses.products import accumulate, operand, product, product_dtype

LoRA = tuple[Tensor, Tensor, float]


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """A teacher's last hidden states and its output head: its logits are computed chunk by chunk.

    Args:
        hidden: `[tokens, teacher hidden]`.
        weight: `[teacher vocab, teacher hidden]`.
        bias: `[teacher vocab]` or None.
        logit_scale: what the head's output is multiplied by (Cohere, Granite).
        softcap: cap c of `c * tanh(logits / c)` after scaling (Gemma), or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None


def check_head(
    side: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora: LoRA | None = None,
    softcap: float | None = None,
) -> None:
    """Raise ValueError unless the parts of a head fit each other; nothing is broadcast."""
    if hidden.dim() != 2 or weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"{side}_hidden must be [tokens, hidden] and {side}_weight [vocab, hidden], "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    vocab, width = weight.shape
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"the {side}'s bias must have shape ({vocab},), got {tuple(bias.shape)}")
    if lora is not None:
        a, b, _ = lora
        if a.dim() != 2 or a.shape[1] != width or b.shape != (vocab, a.shape[0]):
            raise ValueError(
                f"the {side}'s adapter must be A [rank, {width}] and B [{vocab}, rank], "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"the {side}'s softcap must be positive, or None for no cap; got {softcap}")


@dataclass
class Head:
    """logits = cap(scale * (hidden W' + LoRA + bias)): products for a chunk, the rest for a few rows at a time.

    Operands take the hidden states' dtype, as under autocast. All but the products is in at least fp32; which
    dtype products leave in is told in `stillroom.losses.products`.
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

    def buffer(self, tokens: int) -> Tensor:
        """`[tokens, vocab]`, uninitialised: room for the products of a chunk, to be used again and again.

        A fresh one for each chunk would be given back to the system and zeroed by it every time.
        """
        vocab, device = self.weight.shape[0], self.weight.device
        return torch.empty(tokens, vocab, dtype=product_dtype(self.weight), device=device)

    def products(self, hidden: Tensor, buffer: Tensor) -> Tensor:
        """hidden W' + LoRA in the first rows of the buffer, from hidden states `[tokens, hidden]`."""
        out = product(hidden, self.weight.T, out=buffer[: hidden.shape[0]])
        if self.lora is not None:
            a, b, scale = self.lora
            accumulate(out, product(hidden, a.T).to(b.dtype), b.T, scale)
        return out

    def logits(self, products: Tensor) -> Tensor:
        """The logits of some rows of products, in at least fp32; in place where those are that wide."""
        out = widened(products)
        if self.bias is not None:
            out += self.bias
        if self.logit_scale != 1.0:
            out *= self.logit_scale
        if self.softcap is not None:
            out = out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def before_scaling(self, slope: Tensor, logits: Tensor) -> Tensor:
        """The gradient by the logits, in place made the gradient by `hidden W' + LoRA + bias`."""
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

    def add_bias(self, slope: Tensor) -> None:
        """Add some rows' part of the bias' gradient, `slope` being the gradient before scaling."""
        if self.bias is not None:
            self.bias += slope.sum(0)

    def add(self, head: Head, hidden: Tensor, slope: Tensor, rows: Tensor) -> None:
        """Add one chunk to all but the bias: `hidden` are the rows' hidden states."""
        slope = operand(slope, hidden)
        if self.hidden is not None:
            self.hidden[rows] = widened(product(slope, head.weight))
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
