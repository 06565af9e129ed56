"""The distillation scaling law, fitted to runs: what a student of a size is expected to reach after so many tokens.

Busbridge et al. 2025 (arXiv 2502.08606): the loss of a student lies above its teacher's by L_T^-c0 (A / N^a + B / D^b)^g, as
long as the teacher is better than the student would become alone. Under one teacher the first factor is a constant, which
A and B take in. Their coefficients are of pretraining on another corpus, so that only the form is theirs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.stats.intervals import Interval

Floats = NDArray[np.float64]

COEFFICIENTS = 5
LEAST_RUNS, LEAST_SIZES, LEAST_LENGTHS = 8, 3, 3
"""Runs from which on the law is fitted, three more than it has coefficients; sizes and lengths among them that differ."""
_STARTS = ((0.3, 0.3), (1.0, 0.3), (0.3, 1.0))
"""Exponents a and b that the fit begins at; the best end is kept."""
_ROUNDS = 200


@dataclass(frozen=True)
class Reached:
    """What one run came to.

    Args:
        parameters: of the student, embeddings left out.
        tokens: that it was trained on.
        excess: its loss over its teacher's on held-out lessons, nats a token.
    """

    parameters: float
    tokens: float
    excess: float


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Args:
        coefficients: log A, log a, log B, log b, log g, of sizes and tokens relative to `centre`.
        covariance: of the coefficients.
        variance: of the logarithm of a run's excess around the law.
        freedom: runs beyond the number of coefficients.
        centre: logarithms of the middle size and number of tokens.
        sizes, lengths: the least and the most parameters and tokens that were seen.
    """

    coefficients: Floats
    covariance: Floats
    variance: float
    freedom: int
    centre: Floats
    sizes: tuple[float, float]
    lengths: tuple[float, float]

    def expected(self, parameters: float, tokens: float) -> Interval:
        """The excess of one more run, with its 95 % prediction interval (delta method, Student's t)."""
        where = np.log([[parameters, tokens]]) - self.centre
        value, slopes = _value(self.coefficients, where)
        spread = float(slopes[0] @ self.covariance @ slopes[0]) + self.variance
        half = student_t(self.freedom) * spread**0.5
        return Interval(*(float(np.exp(value[0] + shift)) for shift in (0.0, -half, half)))

    def outside(self, parameters: float, tokens: float) -> str | None:
        """Why the law says nothing here: it is not carried beyond the runs that it was fitted to."""
        for value, (low, high), what in (
            (parameters, self.sizes, "parameters"),
            (tokens, self.lengths, "tokens"),
        ):
            if not low * 0.999 <= value <= high * 1.001:
                return f"{value:,.0f} {what}, the runs had {low:,.0f} to {high:,.0f}"
        return None


def fit_law(runs: Sequence[Reached]) -> Law:
    """The law through runs of one teacher on one kind of lessons: least squares of the logarithm of the excess.

    Raises:
        ValueError: too few runs, sizes or lengths; `wanting` says it in words.
    """
    if lack := wanting(runs):
        raise ValueError(lack)
    known = np.log([[run.parameters, run.tokens] for run in runs])
    excess = np.log([run.excess for run in runs])
    centre = known.mean(axis=0)
    ends = [_descend(_start(excess, *start), known - centre, excess) for start in _STARTS]
    coefficients, squares = min(ends, key=lambda end: end[1])
    freedom = len(runs) - COEFFICIENTS
    variance = squares / freedom
    _, slopes = _value(coefficients, known - centre)
    # Where the runs do not tell two coefficients apart, what cannot be seen does not count as known.
    covariance = np.asarray(variance * np.linalg.pinv(slopes.T @ slopes, rcond=1e-8), np.float64)
    sizes, tokens = [run.parameters for run in runs], [run.tokens for run in runs]
    return Law(
        coefficients,
        covariance,
        variance,
        freedom,
        centre,
        (min(sizes), max(sizes)),
        (min(tokens), max(tokens)),
    )


def wanting(runs: Sequence[Reached]) -> str | None:
    """What is missing for a fit, in words; None: nothing."""
    sizes, lengths = len({run.parameters for run in runs}), len({run.tokens for run in runs})
    if len(runs) >= LEAST_RUNS and sizes >= LEAST_SIZES and lengths >= LEAST_LENGTHS:
        return None
    return (
        f"{len(runs)} of {LEAST_RUNS} runs, {sizes} of {LEAST_SIZES} student sizes, {lengths} of {LEAST_LENGTHS} "
        "lengths of training"
    )


def student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t: with t = sqrt(n) tan(u) its density is that of cos(u)^(n - 1)."""
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(0.95, mass / mass[-1], angles)))


def _start(excess: Floats, of_size: float, of_length: float) -> Floats:
    half = excess.mean() - np.log(2)  # both terms equal
    return np.array([half, np.log(of_size), half, np.log(of_length), 0.0])


def _value(coefficients: Floats, where: Floats) -> tuple[Floats, Floats]:
    """log excess `[runs]` at logarithms of sizes and tokens `[runs, 2]`, and its slopes `[runs, 5]`."""
    first, second = coefficients[0], coefficients[2]
    a, b, g = np.exp(coefficients[[1, 3, 4]])
    size, length = first - a * where[:, 0], second - b * where[:, 1]
    total = np.logaddexp(size, length)
    share = np.exp(size - total)
    slopes = [share, -share * a * where[:, 0], 1 - share, -(1 - share) * b * where[:, 1], total]
    return g * total, g * np.stack(slopes, axis=1)


def _descend(coefficients: Floats, where: Floats, excess: Floats) -> tuple[Floats, float]:
    """Levenberg-Marquardt: the coefficients that it ends at, and their sum of squares."""
    value, slopes = _value(coefficients, where)
    squares, damping = float(((excess - value) ** 2).sum()), 1e-2
    for _ in range(_ROUNDS):
        gradient, bend = slopes.T @ (excess - value), slopes.T @ slopes
        step = np.linalg.solve(bend + damping * np.eye(COEFFICIENTS), gradient)
        tried = coefficients + np.clip(step, -1, 1)
        new, newer = _value(tried, where)
        found = float(((excess - new) ** 2).sum())
        if not found < squares:
            damping = min(damping * 4, 1e12)
            continue
        done = squares - found < 1e-12 * squares
        coefficients, value, slopes, squares, damping = tried, new, newer, found, max(damping / 4, 1e-12)
        if done:
            break
    return coefficients, squares
