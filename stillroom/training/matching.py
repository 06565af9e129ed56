"""Matching the inside of a live teacher: hidden states, attention maps, relations of queries, keys and values.

Romero et al., FitNets, arXiv 1412.6550; Jiao et al., TinyBERT, arXiv 1909.10351; Wang et al., MiniLM v2, arXiv 2012.15828.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe.schedule import Weight, peak, value_at
from stillroom.losses import (
    Captured,
    MatchWeights,
    Projections,
    attention_loss,
    attention_maps,
    capture_attention,
    hidden_state_loss,
    map_layers,
    relation_loss,
    weighted_components,
)

_STATES = ("hidden", "attention_output", "mlp")
_RELATIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Matching:
    """What of a teacher's inside is matched, and how.

    Args:
        weights: of components, by the names of `MatchWeights`; 0 for those not named. What has weight 0 is not computed.
        layer_weights: of the student's layers; 1 for those not named.
        layers: the student's layers and the teacher's, see `map_layers`.
        states: "mse" or "cosine", see `hidden_state_loss`.
        maps: "kl" or "mse", see `attention_loss`.
        relation_heads: into how many heads relations are split, see `relation_loss`.
    """

    weights: Mapping[str, Weight] = field(default_factory=dict)
    layer_weights: Mapping[int, float] = field(default_factory=dict)
    layers: str | Mapping[int, int] = "uniform"
    states: str = "mse"
    maps: str = "kl"
    relation_heads: int = 8

    @property
    def components(self) -> list[str]:
        """Those that count."""
        return [name for name in MatchWeights.components() if peak(self.weights.get(name, 0.0)) > 0]

    def at(self, progress: float) -> MatchWeights:
        """The weights when this share of the training is done."""
        now = {name: value_at(self.weights.get(name, 0.0), progress) for name in MatchWeights.components()}
        return MatchWeights(**now, layers=self.layer_weights)

    @property
    def reads_maps(self) -> bool:
        """Whether tokens are compared with each other, for which rows must not be packed."""
        return bool({"attention", *_RELATIONS} & {*self.components})


@dataclass
class Seen:
    """What the hooks saw in one forward pass: of the student's layers, and of the teacher's."""

    student: dict[str, dict[int, Any]] = field(default_factory=dict)
    teacher: dict[str, dict[int, Any]] = field(default_factory=dict)


class Matcher(nn.Module):
    """Compares a student's inside with its teacher's; holds the projections between widths, which are trained.

    It is a part of the student while that trains, so that optimisers, wrappers and checkpoints take it along, and is left
    behind when the student is saved.

    Args:
        student: the causal language model itself, inside any wrapper.
        teacher: likewise.
        matching: what is compared.

    Raises:
        ModelError: a layer that is not there, a model whose layers cannot be looked into, or widths that relations cannot
            be split into; the last is found in the first step.
    """

    def __init__(self, student: Any, teacher: Any, matching: Matching) -> None:
        super().__init__()
        self.matching = matching
        blocks = (len(_layers(student)), len(_layers(teacher)))
        with _explained():
            self.layer_map = map_layers(*blocks, matching.layers)
        inside = {own: other for own, other in self.layer_map.items() if own and other}
        widths = (student.config.hidden_size, teacher.config.hidden_size)
        self.pairs = {name: self.layer_map if name == "hidden" else inside for name in matching.components}
        with torch.random.fork_rng(devices=[]):  # the same start whatever was drawn before
            torch.manual_seed(0)
            self.projections = nn.ModuleDict(
                {
                    name: Projections(self.pairs[name], *widths)
                    for name in _STATES
                    if name in self.pairs and widths[0] != widths[1]
                }
            )
        self.to(next(student.parameters()).device)

    @contextmanager
    def watching(self, student: Any, teacher: Any) -> Iterator[Seen]:
        """Within the context a forward pass of each model leaves what is compared."""
        seen = Seen()
        with ExitStack() as hooks:
            for model, kept, side in ((student, seen.student, 0), (teacher, seen.teacher, 1)):
                places = {name: {pair[side] for pair in pairs.items()} for name, pairs in self.pairs.items()}
                layers = _layers(model)
                for handle in _hooks(layers, places, kept):
                    hooks.callback(handle.remove)
                asked = set().union(*(at for name, at in places.items() if name not in ("hidden", "mlp")))
                if asked:
                    modules = {at: layers[at - 1].get_submodule("self_attn") for at in sorted(asked)}
                    with _explained():
                        kept["attention"] = hooks.enter_context(capture_attention(modules))
            yield seen

    def forward(self, seen: Seen, positions: Tensor, progress: float = 0.0) -> Tensor:
        """The weighted sum of all components at the positions `[N]` of the flattened batch: float32 `[N]`."""
        weights = self.matching.at(progress)
        with _explained():
            values = {
                (own, name): self._compared(name, own, other, seen, positions)
                for name, pairs in self.pairs.items()
                if getattr(weights, name) > 0
                for own, other in pairs.items()
            }
        if not values:
            return torch.zeros(len(positions), device=positions.device)
        return weighted_components(values, weights)

    def _compared(self, name: str, own: int, other: int, seen: Seen, positions: Tensor) -> Tensor:
        how = self.matching
        if name in _STATES:
            student, teacher = (
                _at(_state(side, name, layer), positions)
                for side, layer in ((seen.student, own), (seen.teacher, other))
            )
            if name in self.projections:
                student = self.projections[name](own, student)
            return hidden_state_loss(student, teacher, kind=how.states)
        mine: Captured = seen.student["attention"][own]
        theirs: Captured = seen.teacher["attention"][other]
        if name == "attention":
            maps = [attention_maps(one.query, one.key, scale=one.scale) for one in (mine, theirs)]
            return _at(attention_loss(*maps, kind=how.maps), positions)
        related = relation_loss(getattr(mine, name), getattr(theirs, name), how.relation_heads, causal=True)
        return _at(related, positions)


def _layers(model: Any) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(layers[0], "self_attn"):
        raise ModelError(
            f"the layers of {type(model).__name__} cannot be looked into",
            got="no list `layers` of blocks with `self_attn`",
            expected="a Llama-like decoder",
            do="set the weights of what is matched in distil.loss to 0",
        )
    return layers


@contextmanager
def _explained() -> Iterator[None]:
    """What the losses refuse, as an error of the recipe's maker."""
    try:
        yield
    except ValueError as error:
        raise ModelError(
            "the inside of these models cannot be matched so",
            got=str(error),
            do="change distil.match, or set the weights of what is matched in distil.loss to 0",
        ) from None


def _hooks(
    layers: nn.ModuleList, places: Mapping[str, set[int]], kept: dict[str, dict[int, Any]]
) -> Iterator[Any]:
    """Hooks that keep the outputs of blocks and MLPs; index 0 is what goes into the first block."""
    for name in {"hidden", "mlp"} & places.keys():
        kept[name] = {}
        for at in sorted(places[name]):
            if at == 0:
                yield layers[0].register_forward_pre_hook(partial(_keep_input, kept[name]), with_kwargs=True)
            else:
                module = layers[at - 1] if name == "hidden" else layers[at - 1].get_submodule("mlp")
                yield module.register_forward_hook(partial(_keep, kept[name], at))


def _keep(kept: dict[int, Any], at: int, _: nn.Module, __: Any, output: Any) -> None:
    kept[at] = output[0] if isinstance(output, tuple) else output


def _keep_input(kept: dict[int, Any], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kept[0] = args[0] if args else kwargs["hidden_states"]


def _state(side: dict[str, dict[int, Any]], name: str, layer: int) -> Tensor:
    return side["attention"][layer].output if name == "attention_output" else side[name][layer]


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """`[rows, length, ...]` at positions of the flattened batch."""
    return values.flatten(0, 1).index_select(0, positions)
