"""Matching hidden states: token values, learned projections between widths, and weights of layers and components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from stillroom.losses.divergences import widened


def hidden_state_loss(
    student: Tensor, teacher: Tensor, *, kind: str = "mse", mask: Tensor | None = None
) -> Tensor:
    """How far the student's states are from the teacher's: `[...]`, one value a token, in at least fp32.

    "mse" is the mean over the width of the squared difference (TinyBERT, Jiao et al. 2020); "cosine" is
    1 - cos, which ignores length (DistilBERT, Sanh et al. 2019); a vector of zeros has cosine 0 with
    everything. Serves attention outputs, MLP outputs and values as well.

    Args:
        student: `[..., width]`, any floating dtype; gradients flow through it.
        teacher: the same shape; see `Projections` for other widths. No gradient reaches it.
        kind: "mse" or "cosine".
        mask: bool `[...]`; where False the value and the gradient are 0, even if the states are NaN.

    Raises:
        ValueError: the shapes differ, the mask does not fit, or an unknown kind.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student states {tuple(student.shape)} and teacher states {tuple(teacher.shape)} must have one shape;"
            " Projections maps one width to another"
        )
    if kind not in ("mse", "cosine"):
        raise ValueError(f'kind must be "mse" or "cosine", got {kind!r}')
    s, t = widened(student), widened(teacher.detach())
    if mask is not None:
        if mask.shape != student.shape[:-1]:
            raise ValueError(f"the mask must be {tuple(student.shape[:-1])}, got {tuple(mask.shape)}")
        out = ~mask.bool()
        s, t = (x.masked_fill(out.unsqueeze(-1), 0) for x in (s, t))
    values = (s - t).square().mean(-1) if kind == "mse" else 1 - (_unit(s) * _unit(t)).sum(-1)
    return values if mask is None else values.masked_fill(out, 0)


def _unit(x: Tensor) -> Tensor:
    """x over its length, without overflow for large entries; zero stays zero, with a finite gradient."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=0.5)  # at least 1 unless zero


class Projections(nn.Module):
    """One learned linear map per matched pair of layers, from the student's width to the teacher's.

    It belongs to the training, not to the student: give its parameters to the optimiser beside the
    student's, and leave it behind when the student is saved. It starts as an isometry (as far as the widths
    allow), so that states are not shrunk before anything is learned.

    Args:
        layer_map: student layer -> teacher layer, from `map_layers`.
        student_width: hidden size of the student.
        teacher_width: hidden size of the teacher.
        bias: whether the maps have a bias; TinyBERT's have none, the regressors of FitNets have one.
    """

    def __init__(
        self, layer_map: Mapping[int, int], student_width: int, teacher_width: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.layer_map = dict(layer_map)
        self.maps = nn.ModuleDict()
        for pair in self.layer_map.items():
            linear = nn.Linear(student_width, teacher_width, bias)
            nn.init.orthogonal_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)
            self.maps["->".join(map(str, pair))] = linear

    def forward(self, student_layer: int, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States of this student layer `[..., student width]` as `[..., teacher width]`.

        Args:
            student_layer: one of the layer map's.
            states: any floating dtype.
            mask: bool `[...]`; where False the states count as 0, so that NaN there does not reach the map's
                gradient, which is a sum over all of them.

        Raises:
            ValueError: the layer is not in the map.
        """
        if student_layer not in self.layer_map:
            raise ValueError(f"student layer {student_layer} is not in the map {self.layer_map}")
        linear = self.maps[f"{student_layer}->{self.layer_map[student_layer]}"]
        if mask is not None:
            states = states.masked_fill(~mask.bool().unsqueeze(-1), 0)
        return linear(states.to(next(linear.parameters()).dtype))


class Hint(nn.Module):
    """A FitNets hint (Romero et al. 2014): one guided layer of the student regresses one layer of the teacher.

    The paper trains the student up to the guided layer with this alone, then everything with the soft
    targets. Its value is half the squared distance; ours is the mean over the width, as everywhere here.

    Args:
        student_layer: the guided layer; the paper takes the middle one.
        teacher_layer: the hint, likewise.
        student_width: hidden size of the student.
        teacher_width: hidden size of the teacher.
    """

    def __init__(
        self, student_layer: int, teacher_layer: int, student_width: int, teacher_width: int
    ) -> None:
        super().__init__()
        self.student_layer = student_layer
        self.regressor = Projections({student_layer: teacher_layer}, student_width, teacher_width, bias=True)

    def forward(
        self, guided: Tensor, hint: Tensor, *, kind: str = "mse", mask: Tensor | None = None
    ) -> Tensor:
        """`hidden_state_loss` of the regressed guided states and the hint, one value a token."""
        regressed = self.regressor(self.student_layer, guided, mask)
        return hidden_state_loss(regressed, hint, kind=kind, mask=mask)


@dataclass(frozen=True)
class MatchWeights:
    """How much each component counts, and each of the student's layers.

    Values carry less than attention does by default: where a token looks transfers better than what it finds.

    Args:
        hidden: the block's output.
        attention: attention maps.
        attention_output: what the attention adds to the residual stream.
        mlp: what the MLP adds to it.
        query, key, value: the projections, or their relations.
        layers: student layer -> weight; 1 for those not named.

    Raises:
        ValueError: a negative weight.
    """

    hidden: float = 1.0
    attention: float = 1.0
    attention_output: float = 1.0
    mlp: float = 1.0
    query: float = 1.0
    key: float = 1.0
    value: float = 0.5
    layers: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in self.components()}
        given |= {f"layer {layer}": weight for layer, weight in self.layers.items()}
        if wrong := {name: weight for name, weight in given.items() if not weight >= 0}:
            raise ValueError(f"weights cannot be negative, got {wrong}")

    @classmethod
    def components(cls) -> list[str]:
        """The names that components go by."""
        return [f.name for f in fields(cls) if f.name != "layers"]


def weighted_components(components: Mapping[tuple[int, str], Tensor], weights: MatchWeights) -> Tensor:
    """sum of layer weight * component weight * values: one value a token, in at least fp32.

    What has weight 0 is not touched, NaN included.

    Args:
        components: (student layer, component name) -> values, all of one shape.
        weights: what each counts.

    Raises:
        ValueError: nothing to sum, a component without a name in `MatchWeights`, a weighted layer that no
            component belongs to, or values of different shapes.
    """
    if not components:
        raise ValueError("there must be at least 1 component to sum, got 0")
    if unknown := sorted({name for _, name in components} - set(weights.components())):
        raise ValueError(f"unknown components {unknown}; known: {', '.join(weights.components())}")
    if absent := sorted(set(weights.layers) - {layer for layer, _ in components}):
        raise ValueError(f"layers {absent} have weights, but no component is theirs")
    shapes = {tuple(values.shape) for values in components.values()}
    if len(shapes) > 1:
        raise ValueError(f"components must have one shape, got {sorted(shapes)}")
    total = torch.zeros_like(widened(next(iter(components.values()))))
    for (layer, name), values in components.items():
        weight = weights.layers.get(layer, 1.0) * getattr(weights, name)
        if weight:
            total = total + weight * values
    return total
