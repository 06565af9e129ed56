"""Which model files fit a card, with what context and at what speed: sums over shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stillroom.contracts.memory import CARD_RESERVE
from stillroom.planning.families import MODELS, Card
from stillroom.planning.files import embedding_bytes, file_bytes

OF_NOMINAL = 0.8
"""Of a card's nominal bandwidth what float16 weights are read at; an assumption, cards differ."""
HOST_BANDWIDTH = 50e9
"""Bytes a second that a desktop's memory gives, for layers that do not fit the card; an assumption."""
PROMPT_SPEED = 10
"""Tokens of a prompt that are read in the time of writing one: llama.cpp's table has 821.81 and 71.93 a second."""

_WRITTEN = {
    "Q8_0": (7.95, 50.93),
    "Q6_K": (6.14, 58.67),
    "Q5_K_M": (5.33, 67.23),
    "Q4_K_M": (4.58, 71.93),
    "Q4_K_S": (4.36, 76.71),
    "Q2_K": (2.95, 79.85),
}
_WHOLE = (14.96, 29.17)
"""GiB and tokens a second of Llama-3.1-8B on one machine, from llama.cpp's tools/quantize/README.md; the last is F16."""
KINDS = tuple(_WRITTEN)
"""Kinds that are compared, the most exact first."""


def efficiency(kind: str) -> float:
    """Bytes a second that a kind is read at, relative to float16: unpacking takes time, too."""
    size, speed = _WRITTEN.get(kind, _WHOLE)
    return size * speed / (_WHOLE[0] * _WHOLE[1])


@dataclass(frozen=True)
class Fit:
    """A model file on a card.

    Args:
        model: its name in `MODELS`.
        kind: of its file.
        file: bytes of it.
        cache: bytes of the keys and values of the context.
        layers: how many are on the card, the output counted as one more, as `-ngl` does.
        all: layers that there are, counted so.
        speed: tokens written a second, by one answer at a time.
    """

    model: str
    kind: str
    file: int
    cache: int
    layers: int
    all: int
    speed: float

    @property
    def whole(self) -> bool:
        """Whether all of it is on the card."""
        return self.layers == self.all

    @property
    def bytes(self) -> int:
        """What it takes, on the card and beside it."""
        return self.file + self.cache

    def seconds(self, prompt: float, answer: float) -> float:
        """Of a request with so many tokens."""
        return (prompt / PROMPT_SPEED + answer) / self.speed


def fit(model: str, kind: str, card: Card, context: int, *, taken: int = 0) -> Fit:
    """A model on a card of which so many bytes are taken by another."""
    shape = MODELS[model]
    file, cache = file_bytes(shape, kind), shape.cache_bytes(context)
    read = file - embedding_bytes(shape, kind) + cache
    # Layers of one size, and the output as one more.
    every = shape.layers + 1
    left = max(0, card.memory - CARD_RESERVE - taken)
    layers = every if file + cache <= left else min(shape.layers, left * every // (file + cache))
    share = layers / every
    quick = card.bandwidth * OF_NOMINAL * efficiency(kind)
    seconds = read * (share / quick + (1 - share) / (HOST_BANDWIDTH * efficiency(kind)))
    return Fit(model, kind, file, cache, layers, every, 1 / seconds)


def best_kind(model: str, card: Card, context: int, *, taken: int = 0) -> Fit | None:
    """The most exact kind of a model that fits a card whole, None where none does; Q2_K loses too much to be advised."""
    for kind in KINDS[:-1]:
        found = fit(model, kind, card, context, taken=taken)
        if found.whole:
            return found
    return None


def longest_context(found: Fit, card: Card) -> int:
    """Tokens whose keys and values there is room for beside the file, up to what the model was made for."""
    shape = MODELS[found.model]
    left = card.memory - CARD_RESERVE - found.file
    low, high = 0, shape.context or 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if shape.cache_bytes(middle) <= left else (low, middle - 1)
    return low


def largest(card: Card, context: int, names: Sequence[str] | None = None, *, taken: int = 0) -> Fit | None:
    """The largest model that fits whole in some kind."""
    found = [fit for name in names or MODELS if (fit := best_kind(name, card, context, taken=taken))]
    return max(found, key=lambda fit: MODELS[fit.model].parameters, default=None)


def pairs(card: Card, context: int, students: Sequence[str]) -> Iterator[tuple[Fit, Fit]]:
    """Small students with the largest model of at least twice their size that fits the card beside them."""
    for name in students:
        small = best_kind(name, card, context)
        if small is None:
            continue
        twice = 2 * MODELS[name].parameters
        above = [other for other in MODELS if MODELS[other].parameters >= twice]
        large = largest(card, context, above, taken=small.bytes) if above else None
        if large:
            yield small, large
