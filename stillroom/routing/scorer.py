"""Features to a score and a chance: ridge logistic regression, calibrated by isotonic regression."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stats import isotonic
from stillroom.stats.intervals import Floats

_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_STEPS = 50
_SHOWN = 0.9
"""A feature that fewer attempts show is left out; attempts that do not show one that is used have no score."""


@dataclass(frozen=True)
class Scorer:
    """Which features count, and for how much."""

    features: list[str]
    centre: list[float]
    scale: list[float]
    lows: list[float]
    highs: list[float]
    """Each feature's range where it was learned; what lies beyond counts as its end: nobody has seen what comes there."""
    weights: list[float]
    """Of the standardised features, in nats of log-odds that the answer is good."""
    bias: float
    places: list[float]
    """Scores at which the calibration has a point, rising."""
    chances: list[float]
    """The chance there that the answer is good."""

    def scores(self, described: dict[str, Floats]) -> Floats:
        """[attempts] in 0..1, higher is better; minus infinity where a feature is missing, so that no threshold keeps it.

        Raises:
            KeyError: a feature is missing of all.
        """
        if not self.features:
            return np.full(len(next(iter(described.values()))), _logistic(np.array(self.bias)))
        columns = np.stack([described[name] for name in self.features], axis=1)
        whole = ~np.isnan(columns).any(axis=1)
        scores = np.full(len(columns), -np.inf)
        x = (np.clip(columns[whole], self.lows, self.highs) - self.centre) / self.scale
        scores[whole] = _logistic(x @ self.weights + self.bias)
        return scores

    def chance(self, scores: Floats) -> Floats:
        """[attempts]: the calibrated chance that each answer is good; the score orders, this is what to show."""
        return np.interp(scores, self.places, self.chances)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Scorer:
        """Back from `to_json`.

        Raises:
            TypeError: the object is not a scorer.
        """
        return Scorer(**tree)


def fit_scorer(described: dict[str, Floats], good: Floats, seed: int = 0) -> tuple[Scorer, Floats]:
    """A scorer, and what scorers that had not seen them gave each attempt.

    The ridge is the one of six under which attempts left out are likeliest, in five folds; the calibration is made from the
    same left-out scores, so that it does not believe in what was learned by heart.

    Args:
        described: each feature's values, [attempts].
        good: [attempts] 0 or 1.
        seed: draws the folds.

    Returns:
        The scorer, fitted to all, and the left-out scores [attempts], minus infinity where a feature is missing. They are
        put on the scorer's own scale: in the place of the k-th highest stands what the scorer itself gives k-th highest.
    """
    names = [name for name, column in described.items() if _tells(column)]
    columns = np.stack([described[name] for name in names], axis=1) if names else np.zeros((len(good), 0))
    whole = ~np.isnan(columns).any(axis=1)
    x, y = columns[whole], good[whole]
    lows, highs = (x.min(axis=0), x.max(axis=0)) if len(x) else (np.zeros(len(names)), np.zeros(len(names)))
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    x = (x - centre) / scale
    folds = _folds(y, seed)
    guesses = {penalty: _left_out(x, y, penalty, folds) for penalty in _PENALTIES}
    best = min(guesses, key=lambda penalty: _log_loss(guesses[penalty], y))
    weights, bias = _fit(x, y, best)
    fair = np.empty(len(y))
    fair[np.argsort(guesses[best], kind="stable")] = np.sort(_logistic(x @ weights + bias))
    places, chances = isotonic(fair, y)
    scorer = Scorer(
        names,
        centre=centre.tolist(),
        scale=scale.tolist(),
        lows=lows.tolist(),
        highs=highs.tolist(),
        weights=weights.tolist(),
        bias=bias,
        places=places.tolist(),
        chances=chances.tolist(),
    )
    unseen = np.full(len(good), -np.inf)
    unseen[whole] = fair
    return scorer, unseen


def _folds(y: Floats, seed: int) -> NDArray[np.int64]:
    """[attempts] which fold each is left out in: as many good ones in each, or a fold rich in them would be scored low."""
    shuffled = np.random.default_rng(seed).permutation(len(y))
    folds = np.empty(len(y), np.int64)
    folds[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % _FOLDS
    return folds


def _tells(column: Floats) -> bool:
    shown = column[~np.isnan(column)]
    return len(shown) >= _SHOWN * len(column) and len(shown) > 0 and bool(np.ptp(shown) > 0)


def _left_out(x: Floats, y: Floats, penalty: float, folds: NDArray[np.int64]) -> Floats:
    guessed = np.empty(len(y))
    for fold in range(_FOLDS):
        out = folds == fold
        weights, bias = _fit(x[~out], y[~out], penalty)
        guessed[out] = _logistic(x[out] @ weights + bias)
    return guessed


def _fit(x: Floats, y: Floats, penalty: float) -> tuple[Floats, float]:
    """Weights [features] and bias of the likeliest logistic model, `penalty` / 2 times the weights' squares against it.

    Newton's steps, each halved until the loss falls. The bias pays no penalty but a trace of one, so that it stays finite
    where all outcomes are equal.
    """
    columns = np.hstack([x, np.ones((len(x), 1))])
    ridge = np.full(columns.shape[1], penalty)
    ridge[-1] = 1e-3
    weights = np.zeros(columns.shape[1])

    def loss(w: Floats) -> float:
        margin = columns @ w
        return float(np.logaddexp(0, margin).sum() - y @ margin + 0.5 * ridge @ w**2)

    now = loss(weights)
    for _ in range(_STEPS):
        chance = _logistic(columns @ weights)
        slope = columns.T @ (chance - y) + ridge * weights
        bend = (columns * (chance * (1 - chance))[:, None]).T @ columns + np.diag(ridge)
        step = np.linalg.solve(bend, slope)
        size = 1.0
        while (then := loss(weights - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then < 1e-9 * max(1.0, now):
            break
        weights, now = weights - size * step, then
    return weights[:-1], float(weights[-1])


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


def _log_loss(chance: Floats, y: Floats) -> float:
    kept = np.clip(chance, 1e-9, 1 - 1e-9)
    return -float(np.mean(y * np.log(kept) + (1 - y) * np.log1p(-kept)))
