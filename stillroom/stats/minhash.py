"""Near-duplicates among texts that come one by one: MinHash bands find candidates, exact comparison decides.

Two texts are as alike as their sets of shingles: the Jaccard similarity |A and B| / |A or B| of all runs of five
characters of the normalised texts. Characters, not words, so that short questions and scripts without spaces are
compared as well. Broder, On the resemblance and containment of documents (1997); banding as in Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import math
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillroom.stats.bands import BandIndex

Signature: TypeAlias = NDArray[np.uint32]

SHINGLE = 5
"""Characters in a shingle."""
_MISSED = 0.003
"""Most that banding may miss of the pairs at the threshold."""
_LONGEST = 160
"""Most hashes in a signature."""
_CHUNK = 4096
"""Shingles hashed at once, so that a book does not need [hashes, its length] numbers."""
_SLACK = 0.15
"""How far a signature may stand under the threshold before its text is not read: five standard errors and more."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """The text in one case, with compatibility forms folded (NFKC) and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[str]:
    """Every run of five characters of a text; a shorter text is its only shingle."""
    plain = normalised(text)
    return {plain[at : at + SHINGLE] for at in range(max(1, len(plain) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 1.0


class MinHash:
    """Signatures whose share of equal entries estimates the Jaccard similarity of two texts.

    Args:
        hashes: length of a signature; the estimate's standard error is at most 0.5 / sqrt(hashes).
        seed: seeds the hash functions. Signatures of different seeds cannot be compared.
    """

    def __init__(self, hashes: int = 128, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self._multipliers = draw.integers(0, 1 << 31, (hashes, 1), dtype=np.uint32) * np.uint32(
            2
        ) + np.uint32(1)
        self._offsets = draw.integers(0, 1 << 32, (hashes, 1), dtype=np.uint32)

    def signature(self, text: str) -> Signature:
        """[hashes] uint32: the least value of each hash function over the text's shingles."""
        return self.least(hashed_shingles(normalised(text)))

    def least(self, values: NDArray[np.uint32]) -> Signature:
        """[hashes] uint32: the least value of each hash function over hashed shingles, of which there is at least one."""
        least: Signature | None = None
        for start in range(0, len(values), _CHUNK):
            part = self._multipliers * values[start : start + _CHUNK]
            part += self._offsets
            found: Signature = part.min(axis=1)
            least = found if least is None else np.minimum(least, found)
        assert least is not None, "every text has a shingle"
        return least


def hashed_shingles(plain: str) -> NDArray[np.uint32]:
    """One well-mixed number a shingle, in the order of the text, repetitions included."""
    # Half a surrogate pair, which models do write, has no strict encoding.
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    width = min(SHINGLE, len(points))
    rows = len(points) - width + 1
    value = np.zeros(rows, np.uint64)
    for at in range(width):
        value = (value ^ points[at : at + rows]) * _PRIME
        value ^= value >> np.uint64(29)
    return (value >> np.uint64(16)).astype(np.uint32)


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows a band) that miss under 0.3 % of the pairs at the threshold and bring few others."""
    rows = 1
    while _bands(threshold, rows + 1) * (rows + 1) <= _LONGEST:
        rows += 1
    return _bands(threshold, rows), rows


def _bands(threshold: float, rows: int) -> int:
    return math.ceil(math.log(_MISSED) / math.log1p(-(threshold**rows)))


class NearDuplicates:
    """Says of each text which earlier one it repeats.

    A pair counts when the exact Jaccard similarity of its shingles reaches the threshold, so nothing under it is ever
    dropped; of the pairs at the threshold at least 99 % are found, of closer ones more. A text that repeats another is
    not remembered itself. The time for a text does not grow with their number. In memory a text takes about 300 bytes
    whatever its length; the texts themselves lie in a temporary file.

    Args:
        threshold: between 0 and 1, both excluded.
        seed: seeds the hash functions.

    Raises:
        ValueError: the threshold is out of range.
    """

    def __init__(self, threshold: float = 0.8, seed: int = 0) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}, must lie between 0 and 1")
        self.threshold = threshold
        bands, rows = bands_for(threshold)
        self._hashes = MinHash(bands * rows, seed)
        self._index = BandIndex(bands, rows, seed)
        self._texts = tempfile.TemporaryFile(prefix="stillroom-texts-")  # noqa: SIM115 - lives as long as we do
        self._places = np.zeros((1024, 3), np.int64)  # of each remembered text: number, offset, bytes
        self._remembered = 0
        self._end = 0
        self._count = 0

    def __len__(self) -> int:
        """How many texts were added, repetitions included."""
        return self._count

    def add(self, text: str) -> int | None:
        """The number (from 0, in the order of adding) of an earlier text that this one repeats, or None.

        Args:
            text: any text. Case, spacing and Unicode's compatibility forms make no difference.
        """
        plain = normalised(text)
        signature = self._hashes.least(hashed_shingles(plain))
        number, self._count = self._count, self._count + 1
        keys = self._index.keys(signature)
        found = self._first_alike(plain, signature, keys)
        if found is None:
            self._remember(plain, signature, keys, number)
        return found

    def add_all(self, texts: Iterable[str]) -> Iterator[int | None]:
        """`add` for each text, in order, as they come."""
        return map(self.add, texts)

    def _first_alike(self, plain: str, signature: Signature, keys: NDArray[np.uint32]) -> int | None:
        own: set[str] | None = None
        for candidate in self._index.candidates(keys):
            number, offset, size = self._places[candidate].tolist()
            self._texts.seek(offset)
            record = self._texts.read(len(signature) + size)
            low = np.frombuffer(record, np.uint8, len(signature))
            # A byte of each hash is kept: one in 256 agrees by accident, which only makes this guess generous.
            if np.count_nonzero(low == signature.astype(np.uint8)) < (self.threshold - _SLACK) * len(low):
                continue
            other = record[len(low) :].decode("utf-8", "surrogatepass")
            if other == plain:
                return int(number)
            own = own if own is not None else shingles(plain)
            if jaccard(own, shingles(other)) >= self.threshold:
                return int(number)
        return None

    def _remember(self, plain: str, signature: Signature, keys: NDArray[np.uint32], number: int) -> None:
        if self._remembered == len(self._places):
            self._places = np.concatenate([self._places, np.zeros_like(self._places)])
        data = plain.encode("utf-8", "surrogatepass")
        self._texts.seek(self._end)
        self._texts.write(signature.astype(np.uint8).tobytes() + data)
        self._places[self._remembered] = number, self._end, len(data)
        self._index.add(keys)
        self._end += len(signature) + len(data)
        self._remembered += 1

    def close(self) -> None:
        """Give the temporary file back; harmless twice."""
        self._texts.close()
