"""Parameters that are spread over ranks (DTensor), made whole for the head and their gradients spread again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from torch import Tensor, nn

from stillroom.losses.heads import TeacherHead

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def whole(parameter: Tensor) -> Tensor:
    """The whole parameter, on every rank; itself where it is not sharded.

    A collective: each rank must come here, also one whose positions all have weight 0. Of a frozen
    parameter nothing is communicated going back.

    Each rank's gradient of a whole parameter comes from that rank's positions alone. It is averaged over the
    ranks, as DDP and `fully_shard` average those of all other parameters. (`full_tensor` by default takes it
    for the same gradient on every rank and keeps the local rows: other ranks' tokens would be lost.) Ranks
    that share their positions, as under tensor parallelism, have one gradient, which is its own average.
    `set_gradient_divide_factor` changes the division in `fully_shard` and not here.
    """
    return _gathered(parameter) if _sharded(parameter) else parameter


def whole_head(teacher: T) -> T:
    """A TeacherHead with its weight and bias made whole; any other kind of teacher as it is. A collective."""
    if not isinstance(teacher, TeacherHead):
        return teacher
    bias = None if teacher.bias is None else whole(teacher.bias.detach())
    return replace(teacher, weight=whole(teacher.weight.detach()), bias=bias)


def check_positions(student_hidden: Tensor, teacher: object) -> None:
    """Raise ValueError unless hidden states or logits of both sides are this rank's own, and no DTensors."""
    states = teacher.hidden if isinstance(teacher, TeacherHead) else teacher
    for name, tensor in (("student_hidden", student_hidden), ("the teacher", states)):
        if isinstance(tensor, Tensor) and _sharded(tensor):
            raise ValueError(
                f"{name} must hold this rank's own positions, got a DTensor of shape {tuple(tensor.shape)};"
                " take its to_local() or full_tensor()"
            )


def _gathered(parameter: DTensor) -> Tensor:
    from torch.distributed.tensor import Partial

    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def _sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # without importing torch.distributed.tensor, which takes half as long as torch itself
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
