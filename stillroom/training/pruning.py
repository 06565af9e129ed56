"""Cutting a student out of a larger model: fewer layers, narrower layers, chosen by what its lessons make it do.

What a model does with the lessons ranks its parts: a layer by how much it turns the hidden state (block influence: Men et
al., ShortGPT, arXiv 2403.03853), a head, a neuron or a channel by the size of its activations (Muralidharan et al.,
Compact Language Models via Pruning and Knowledge Distillation, arXiv 2407.14679). What is cut is then healed by distilling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Prune

_LAYER = re.compile(r"(.*\.layers?\.)(\d+)(\..*)")  # encoders of BERT's kind call them `layer`
_ROWS = 8  # in one forward pass while parts are ranked


@dataclass(frozen=True)
class Ranking:
    """How much each part of a model matters on some texts.

    `layers` float64 [layers]: 1 - cosine of the hidden state before and after, mean over tokens. The others are mean
    squares of activations: `heads` [layers, key-value heads] of what attention hands on, together for all query heads that
    share a key-value head; `neurons` [layers, MLP width] of what the MLP's last matrix reads; `channels` [hidden] of what
    the layers' norms put out, summed over layers.
    """

    layers: Tensor
    heads: Tensor
    neurons: Tensor
    channels: Tensor


@dataclass(frozen=True)
class Kept:
    """What is left of a model: `layers`, and where a width is cut, ascending indices; per kept layer for heads and neurons.

    `heads` counts key-value heads; their query heads go with them.
    """

    layers: list[int]
    channels: Tensor | None = None
    heads: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)

    @property
    def narrows(self) -> bool:
        """Whether a width is cut too."""
        return self.channels is not None or bool(self.heads) or bool(self.neurons)


def kept_layers(total: int, keep: int, how: str = "spread") -> list[int]:
    """Which layers of `total` a student of `keep` layers takes, ascending, where only their place counts.

    `first` takes the first ones. `spread` takes evenly spaced ones, the first and the last among them
    (DistilBERT took every other layer).

    Raises:
        ModelError: there are not that many.
    """
    _at_most("layers", keep, total)
    if how == "first" or keep == 1:
        return list(range(keep))
    return [round(index * (total - 1) / (keep - 1)) for index in range(keep)]


def choose(spec: Prune, source: PreTrainedModel, texts: Callable[[], Iterable[Sequence[int]]]) -> Kept:
    """What the recipe keeps of a model.

    Args:
        spec: how much to keep, and how layers are chosen.
        source: the model that is cut.
        texts: token ids of lessons, read only where parts are ranked by what they do.

    Raises:
        ModelError: more is asked for than there is, sizes do not fit, or the architecture cannot be cut so.
    """
    config = source.config
    total = config.num_hidden_layers
    keep = spec.layers or total
    _at_most("layers", keep, total)
    if not spec.ranks:
        return Kept(kept_layers(total, keep, spec.keep))
    group = config.num_attention_heads // _key_value_heads(config)
    for name, wanted, there in (
        ("hidden", spec.hidden, config.hidden_size),
        ("mlp", spec.mlp, config.intermediate_size),
        ("heads", spec.heads, config.num_attention_heads),
    ):
        _at_most(name, wanted or 1, there)
    if spec.heads and spec.heads % group:
        raise ModelError(
            "heads are cut in groups that share their keys and values",
            got=f"student.prune.heads: {spec.heads}",
            expected=f"a multiple of {group}, up to {config.num_attention_heads}",
        )
    ranking = rank(source, texts())
    layers = (
        _best(ranking.layers, keep).tolist()
        if spec.keep == "influence"
        else kept_layers(total, keep, spec.keep)
    )
    return Kept(
        layers,
        _best(ranking.channels, spec.hidden) if spec.hidden else None,
        [_best(ranking.heads[at], spec.heads // group) for at in layers] if spec.heads else [],
        [_best(ranking.neurons[at], spec.mlp) for at in layers] if spec.mlp else [],
    )


def rank(model: PreTrainedModel, texts: Iterable[Sequence[int]]) -> Ranking:
    """How much each part of a Llama-like decoder matters on some texts, given as token ids.

    Raises:
        ModelError: there is no text, or the model's layers have no parts of the names that Llama's have.
    """
    layers, sums = list(_decoder_layers(model)), _Sums()
    was_training = model.training
    model.eval()
    with torch.inference_mode(), ExitStack() as hooks:
        for at, layer in enumerate(layers):
            for handle in sums.watch(at, layer, _parts(model, layer)):
                hooks.callback(handle.remove)
        remaining = iter(texts)
        while rows := list(islice(remaining, _ROWS)):
            ids, sums.mask = _padded(rows)
            # Attention is causal and padding is on the right: no real token sees it.
            model.base_model(input_ids=ids, use_cache=False)
            sums.tokens += int(sums.mask.sum())
    model.train(was_training)
    if not sums.tokens:
        raise ModelError("parts cannot be ranked without lessons", got="no lesson", do="look at filter/")
    group = model.config.num_attention_heads // _key_value_heads(model.config)
    return Ranking(
        layers=sums.mean("layers", len(layers)).squeeze(1),
        heads=sums.mean("heads", len(layers)).unflatten(1, (-1, group * _head_size(model.config))).sum(-1),
        neurons=sums.mean("neurons", len(layers)),
        channels=sums.mean("channels", len(layers)).sum(0),
    )


class _Sums:
    """What hooks add up over the real tokens of all batches."""

    def __init__(self) -> None:
        self.mask = torch.zeros(0, dtype=torch.bool)
        self.tokens = 0
        self._sums: dict[tuple[str, int], Tensor] = {}

    def watch(self, at: int, layer: nn.Module, parts: dict[str, Any]) -> Iterator[Any]:
        """Hooks on a layer; their handles."""
        yield layer.register_forward_hook(partial(self._turned, at), with_kwargs=True)
        yield parts["o_proj"].register_forward_pre_hook(partial(self._read, "heads", at))
        yield parts["down_proj"].register_forward_pre_hook(partial(self._read, "neurons", at))
        for norm in parts["norms"]:
            yield norm.register_forward_hook(partial(self._normed, at))

    def mean(self, kind: str, layers: int) -> Tensor:
        """Per token, float64 [layers, parts]."""
        return torch.stack([self._sums[kind, at] for at in range(layers)]) / self.tokens

    def _turned(
        self, at: int, _: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        before = inputs[0] if inputs else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        cosine = torch.cosine_similarity(before[self.mask].float(), after[self.mask].float(), dim=-1)
        self._add("layers", at, 1 - cosine[:, None])

    def _read(self, kind: str, at: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._add(kind, at, inputs[0][self.mask].float().square())

    def _normed(self, at: int, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        self._add("channels", at, output[self.mask].float().square())

    def _add(self, kind: str, at: int, values: Tensor) -> None:
        """Values [tokens, parts], of real tokens alone."""
        total = values.double().sum(0)
        self._sums[kind, at] = self._sums[kind, at] + total if (kind, at) in self._sums else total


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and which of them are real, [rows, longest]."""
    longest = max(map(len, rows))
    mask = torch.tensor([[at < len(row) for at in range(longest)] for row in rows])
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    return ids, mask


def prune_student(source: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model with only these parts of the source; its embeddings, final norm and head are kept, as wide as the rest.

    Raises:
        ModelError: the architecture does not name its layers `.layers.N.` or `.layer.N.`, or is narrowed and unlike Llama's.
    """
    config = type(source.config).from_dict(source.config.to_dict())
    config.num_hidden_layers = len(kept.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [source.config.layer_types[old] for old in kept.layers]
    if kept.narrows:
        _resize(config, kept)
    state, found = {}, set()
    for name, tensor in source.state_dict().items():
        match = _LAYER.fullmatch(name)
        if match is None:
            state[name] = _narrowed(source, name, tensor, kept, None)
        elif int(match[2]) in kept.layers:
            found.add(int(match[2]))
            place = kept.layers.index(int(match[2]))
            state[f"{match[1]}{place}{match[3]}"] = _narrowed(source, match[3], tensor, kept, place)
    if len(found) != len(kept.layers):
        raise _uncut(source, "an architecture whose layers are not named layers.N or layer.N")
    student = type(source)(config).to(source.dtype)
    student.load_state_dict(state)
    student.tie_weights()
    if hasattr(source, "generation_config"):
        student.generation_config = source.generation_config
    return student


# Which dimension of a matrix is which width, by the last part of its name: rows, then columns.
_WIDTHS = {
    "embed_tokens": (None, "channels"),
    "lm_head": (None, "channels"),
    "q_proj": ("queries", "channels"),
    "k_proj": ("heads", "channels"),
    "v_proj": ("heads", "channels"),
    "o_proj": ("channels", "queries"),
    "gate_proj": ("neurons", "channels"),
    "up_proj": ("neurons", "channels"),
    "down_proj": ("channels", "neurons"),
}
_OF_A_HEAD = ("q_norm", "k_norm")


def _narrowed(source: PreTrainedModel, name: str, tensor: Tensor, kept: Kept, place: int | None) -> Tensor:
    """The kept rows and columns of one tensor; `place` is the student's layer, None outside of the layers."""
    if not kept.narrows:
        return tensor
    *_, module, _kind = name.split(".")
    widths: tuple[str | None, ...]
    if module in _WIDTHS:
        widths = _WIDTHS[module][: tensor.dim()]
    elif module.endswith("norm") and tensor.dim() == 1:
        widths = (None,) if module in _OF_A_HEAD else ("channels",)
    else:
        raise _uncut(source, f"a tensor {name} of shape {list(tensor.shape)}", narrow=True)
    for dimension, width in enumerate(widths):
        indices = _indices(source.config, kept, width, place)
        if indices is not None:
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor


def _indices(config: Any, kept: Kept, width: str | None, place: int | None) -> Tensor | None:
    """Which rows or columns of a width stay; None: all."""
    if width == "channels":
        return kept.channels
    if place is None or width is None:
        return None
    if width == "neurons":
        return kept.neurons[place] if kept.neurons else None
    if not kept.heads:
        return None
    size = _head_size(config)
    if width == "queries":  # a key-value head's query heads lie side by side
        size *= config.num_attention_heads // _key_value_heads(config)
    return (kept.heads[place][:, None] * size + torch.arange(size)).flatten()


def _resize(config: Any, kept: Kept) -> None:
    """Write the new widths into a config; a head keeps its size whatever the others become."""
    config.head_dim = _head_size(config)
    if kept.channels is not None:
        config.hidden_size = len(kept.channels)
    if kept.neurons:
        config.intermediate_size = len(kept.neurons[0])
    if kept.heads:
        group = config.num_attention_heads // _key_value_heads(config)
        config.num_key_value_heads = len(kept.heads[0])
        config.num_attention_heads = len(kept.heads[0]) * group


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, ascending; int64."""
    return scores.topk(count).indices.sort().values


def _decoder_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise _uncut(model, "a model without a list of layers")
    yield from layers


def _parts(model: PreTrainedModel, layer: nn.Module) -> dict[str, Any]:
    """The matrices whose inputs rank heads and neurons, and the norms whose outputs rank channels."""
    named = {name.rpartition(".")[2]: part for name, part in layer.named_modules()}
    missing = {"o_proj", "down_proj", "input_layernorm"} - named.keys()
    if missing:
        raise _uncut(model, f"layers without {', '.join(sorted(missing))}", narrow=True)
    norms = [named[name] for name in ("input_layernorm", "post_attention_layernorm") if name in named]
    return {"o_proj": named["o_proj"], "down_proj": named["down_proj"], "norms": norms}


def _uncut(model: PreTrainedModel, got: str, *, narrow: bool = False) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be cut{' so' if narrow else ''}",
        got=got,
        expected="a Llama-like decoder",
        do="keep its widths and cut layers by their place (keep: first or spread)"
        if narrow
        else "give student.model a smaller pretrained model instead",
    )


def _at_most(name: str, wanted: int, there: int) -> None:
    if wanted > there:
        raise ModelError(
            "the student would be larger than its source",
            got=f"student.prune.{name}: {wanted}",
            expected=f"at most {there}",
            do="ask for less",
        )
