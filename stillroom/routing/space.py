"""How far is a question from what the student was taught? Nearest neighbours among lessons, as vectors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillroom.stats.minhash import hashed_shingles, normalised

Vectors: TypeAlias = NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[str]], NDArray[Any]]
"""Texts to vectors [texts, width], of any length but zero: a sentence encoder, or the n-grams below."""

WIDTH = 256
MOST = 2000
"""Lessons that are kept: some 700 kB of cascade.json, and a tenth of a millisecond a question."""
_NEAR = 5
_STEPS = 127


def hashed_ngrams(texts: Sequence[str]) -> Vectors:
    """Counts of the runs of five characters, hashed to 256 signed places: float32 [texts, 256].

    A cosine of two such vectors is that of the full counts, give or take 0.06 (feature hashing: Weinberger et al., arXiv
    0902.2206). The same on every machine.
    """
    return np.stack([_hashed(text) for text in texts]) if texts else np.zeros((0, WIDTH), np.float32)


def _hashed(text: str) -> Vectors:
    hashes = hashed_shingles(normalised(text) or " ")
    signs = np.where(hashes & np.uint32(WIDTH), -1.0, 1.0)
    return np.bincount(hashes % np.uint32(WIDTH), signs, WIDTH).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Space:
    """The lessons' questions as unit vectors."""

    lessons: NDArray[np.int8]
    """[lessons, width]: each direction in steps of 1/127 of its largest part."""
    name: str = "hashed n-grams"
    embed: Embed = field(default=hashed_ngrams, repr=False)

    @staticmethod
    def of(
        texts: Sequence[str], *, embed: Embed = hashed_ngrams, name: str = "hashed n-grams", seed: int = 0
    ) -> Space:
        """From the questions of lessons; of more than 2,000 so many are drawn.

        Args:
            embed: texts to vectors.
            name: what tells this `embed` from others in a file.
        """
        chosen = texts
        if len(texts) > MOST:
            places = np.sort(np.random.default_rng(seed).choice(len(texts), MOST, replace=False))
            chosen = [texts[place] for place in places]
        vectors = np.asarray(embed(chosen), dtype=np.float32)
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=1e-30)
        return Space(np.rint(vectors / largest * _STEPS).astype(np.int8), name, embed)

    def nearness(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts, 2]: the cosine with the nearest lesson, and the mean of those with the five nearest."""
        asked = _unit(np.asarray(self.embed(texts), dtype=np.float32))
        near = min(_NEAR, len(self.lessons))
        cosines = np.partition(asked @ self._directions.T, -near, axis=1)[:, -near:]
        return np.stack([cosines.max(axis=1), cosines.mean(axis=1)], axis=1).astype(np.float64)

    @property
    def _directions(self) -> Vectors:
        # Kept once made: every request needs them.
        if not hasattr(self, "_unit_lessons"):
            object.__setattr__(self, "_unit_lessons", _unit(self.lessons.astype(np.float32)))
        found: Vectors = self._unit_lessons  # type: ignore[attr-defined]
        return found

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `embed` is known by its name alone."""
        packed = base64.b64encode(self.lessons.tobytes()).decode("ascii")
        return {"name": self.name, "width": self.lessons.shape[1], "lessons": packed}

    @staticmethod
    def from_json(tree: dict[str, Any], embed: Embed = hashed_ngrams) -> Space:
        """Back from `to_json`, with the same `embed`.

        Raises:
            KeyError, ValueError: the object is not a space.
        """
        flat = np.frombuffer(base64.b64decode(tree["lessons"], validate=True), np.int8)
        return Space(flat.reshape(-1, tree["width"]), tree["name"], embed)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
