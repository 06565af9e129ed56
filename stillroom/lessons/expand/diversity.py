"""How diverse texts are, in a few figures that a manifest can hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillroom.stats.minhash import MinHash, normalised

Embed = Callable[[Sequence[str]], NDArray[np.floating]]
"""Texts to vectors, [texts, width]."""
SAMPLE = 2000
"""Texts that are looked at; so many are drawn at random from a stream."""
_PAIRED = 500
"""Texts of these that are compared each with each."""


T = TypeVar("T")


class Reservoir(Generic[T]):
    """A random sample of a stream, everything equally likely (Vitter's algorithm R)."""

    def __init__(self, size: int = SAMPLE, seed: int = 0) -> None:
        self.texts: list[T] = []
        self._size, self._seen, self._draw = size, 0, random.Random(seed)

    def add(self, text: T) -> None:
        """The next text, or whatever the stream is of."""
        self._seen += 1
        if len(self.texts) < self._size:
            self.texts.append(text)
        elif (place := self._draw.randrange(self._seen)) < self._size:
            self.texts[place] = text


def diversity(texts: Sequence[str], embed: Embed | None = None) -> dict[str, float | int]:
    """Figures between 0, all the same, and 1, nothing in common.

    `distinct-n` is the share of runs of n words that are different ones (Li et al., A diversity-promoting objective
    function for neural conversation models, 2016); it falls with the number of texts, so only samples of equal size
    compare. `minhash dispersion` is 1 minus the mean Jaccard similarity of two texts, estimated. `embedding dispersion`
    is 1 minus the mean cosine of two texts, where an embedder is given.

    Args:
        texts: a sample, such as a Reservoir's.
        embed: gives the vectors.
    """
    found: dict[str, float | int] = {"sampled": len(texts)}
    words = [normalised(text).split() for text in texts]
    for length in (1, 2, 3):
        runs = [tuple(w[i : i + length]) for w in words for i in range(len(w) - length + 1)]
        if runs:
            found[f"distinct-{length}"] = round(len(set(runs)) / len(runs), 4)
    some = texts[:_PAIRED]
    if len(some) > 1:
        hashes = MinHash(128)
        signatures = np.stack([hashes.signature(text) for text in some])
        pairs = len(some) * (len(some) - 1) / 2
        equal = sum(np.mean(signatures[i + 1 :] == signatures[i], axis=1).sum() for i in range(len(some) - 1))
        found["minhash dispersion"] = round(float(1 - equal / pairs), 4)
        if embed is not None:
            found["embedding dispersion"] = round(_spread(np.asarray(embed(some), np.float64)), 4)
    return found


def _spread(vectors: NDArray[np.float64]) -> float:
    """1 minus the mean cosine over all pairs, from the length of the sum of unit vectors."""
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = len(units)
    total = float(np.square(units.sum(axis=0)).sum())
    return 1 - (total - count) / (count * (count - 1))
