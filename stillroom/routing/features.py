"""What an answer and its question show of how good the answer is: a few numbers each, no model called."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.routing.space import Space
from stillroom.stats.intervals import Floats

_QUANTILES = {"least likely token": 0.0, "10 % quantile": 0.1, "25 % quantile": 0.25, "median token": 0.5}
NEAREST = "nearest lesson"
"""The cosine of a question with the lesson nearest to it."""
_FLOOR = 1e-4
"""Nats: tokens surer than this are alike."""
_UNSURE = math.log(0.9)
_TOKENS = ("whole answer", "mean token", *_QUANTILES, "unsure tokens", "tokens")
_PLACES = ("mean margin", "least margin", "mean entropy", "most entropy")
_NAMES = (*_TOKENS, *_PLACES, "valid", "complete", "question's length")


@dataclass(frozen=True)
class Attempt:
    """An answer of the student and its question, as far as they are known when it must be decided whether it is good enough.

    With the question alone, the decision falls before the student has said a word.
    """

    question: str
    logprobs: Sequence[float] | None = None
    """Natural log, T = 1, of each token that the student wrote, reasoning and the end-of-turn token included: doubts that a
    short answer hides often stand in the reasoning before it."""
    alternatives: Sequence[Sequence[float]] | None = None
    """For each token the log-probabilities of the likeliest tokens there, as many as are known, in any order."""
    valid: bool | None = None
    """Whether the answer has the form that the task wants; None where nobody can tell."""
    complete: bool | None = None
    """False where the answer was cut off."""


def describe(attempts: Sequence[Attempt], space: Space | None) -> dict[str, Floats]:
    """Each feature's name and its values [attempts], NaN where an attempt does not show it.

    Surprises (minus log-probabilities) are told by their logarithm: their size runs over five orders, and the chance of a
    wrong answer goes with the order. Quantiles of token log-probabilities: Gupta et al., arXiv 2404.10136.
    """
    rows = [
        [*_of_tokens(attempt.logprobs), *_of_places(attempt.alternatives), *_of_form(attempt)]
        for attempt in attempts
    ]
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(_NAMES)).T
    found: dict[str, Floats] = dict(zip(_NAMES, columns, strict=True))
    if space is not None and len(space.lessons):
        near = space.nearness([attempt.question for attempt in attempts])
        found[NEAREST], found["near lessons"] = near[:, 0], near[:, 1]
    return found


def _of_tokens(logprobs: Sequence[float] | None) -> list[float]:
    if not logprobs:
        return [math.nan] * len(_TOKENS)
    ordered = sorted(logprobs)
    total, n = math.fsum(ordered), len(ordered)
    quantiles = [_order(-_quantile(ordered, q)) for q in _QUANTILES.values()]
    return [
        _order(-total),
        _order(-total / n),
        *quantiles,
        math.log1p(bisect_left(ordered, _UNSURE)),
        math.log(n),
    ]


def _quantile(ordered: list[float], q: float) -> float:
    """Between neighbours on a straight line; a request has no time for numpy's."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _of_places(alternatives: Sequence[Sequence[float]] | None) -> list[float]:
    """Of the likeliest tokens at each place; NaN unless every place shows two."""
    places = [sorted(place, reverse=True) for place in alternatives or ()]
    if not places or any(len(place) < 2 for place in places):
        return [math.nan] * len(_PLACES)
    margins = [place[0] - place[1] for place in places]
    entropies = [_entropy(place) for place in places]
    return [
        math.fsum(margins) / len(margins),
        min(margins),
        _order(math.fsum(entropies) / len(entropies)),
        _order(max(entropies)),
    ]


def _of_form(attempt: Attempt) -> list[float]:
    return [_flag(attempt.valid), _flag(attempt.complete), math.log1p(len(attempt.question))]


def _order(surprise: float) -> float:
    """The logarithm of a surprise in nats."""
    return math.log(max(surprise, 0.0) + _FLOOR)


def _entropy(logprobs: Sequence[float]) -> float:
    """Entropy in nats of the tokens that are known; what is left of the mass counts as one token more."""
    known = [math.exp(min(value, 0.0)) for value in logprobs]
    rest = max(0.0, 1.0 - math.fsum(known))
    left = rest * math.log(rest) if rest > 0 else 0.0
    return max(0.0, -math.fsum(p * value for p, value in zip(known, logprobs, strict=True) if p) - left)


def _flag(value: bool | None) -> float:
    return math.nan if value is None else float(value)
