"""The cascade: the student keeps what it answers well enough, the teacher is asked for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_json, write_json
from stillroom.routing.features import Attempt, describe
from stillroom.routing.policies import Policy
from stillroom.routing.promises import Promise, too_few
from stillroom.routing.scorer import Scorer, fit_scorer
from stillroom.routing.space import Embed, Space, hashed_ngrams
from stillroom.stats import binomial_at_most, fixed_sequence
from stillroom.stats.intervals import Floats, Values

_FORMAT = 1
_FEWEST = 40
"""Questions, under which there is nothing to fit five folds to."""
_CANDIDATES = 50
"""Thresholds that may be tested, two hundredths of the questions apart."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one answer."""

    keep: bool
    """False: the teacher is asked."""
    score: float | None
    """In 0..1, held against the cascade's threshold; None where a feature is missing."""
    chance: float | None
    """The calibrated chance that the answer is as good as the teacher's."""
    why: str


@dataclass(frozen=True)
class Cascade:
    """A fitted rule: an answer is kept from `threshold` on; None keeps none."""

    scorer: Scorer
    space: Space | None
    threshold: float | None
    promise: Promise
    policy: Policy
    deciles: list[float]
    """Of the scores of the questions set apart, lowest to highest, 11 of them: what is usual."""

    @staticmethod
    def fit(
        attempts: Sequence[Attempt],
        worse: Sequence[bool] | NDArray[np.bool_],
        *,
        policy: Policy | None = None,
        lessons: Sequence[str] = (),
        embed: Embed = hashed_ngrams,
        space: str = "hashed n-grams",
        seed: int = 0,
    ) -> Cascade:
        """Learn on one half of the questions which answers are good, and prove on the other what may be promised of them.

        The thresholds to be tested, and the order in which they are, come from the first half; so the second tests them
        honestly (`stats.fixed_sequence`).

        Args:
            attempts: the student's answers to questions that neither model learned from, drawn as those to come will be.
            worse: [attempts] whether the teacher's answer was better.
            policy: what is to be kept to; default at most 5 % worse with 95 % confidence.
            lessons: the questions that the student learned from.
            embed: texts to vectors, for the distance to the lessons.
            space: what tells this `embed` from others.
            seed: draws the halves.

        Raises:
            DataError: fewer than 40 attempts.
            ValueError: lists of unequal length.
        """
        wrong = np.asarray(worse, dtype=np.float64)
        if wrong.shape != (len(attempts),):
            raise ValueError(f"expected a verdict an attempt, got {wrong.shape} for {len(attempts)}")
        if len(attempts) < _FEWEST:
            raise DataError(
                "too few questions to fit a cascade to",
                got=f"{len(attempts)} questions",
                expected=f"at least {_FEWEST}; some hundreds for a bound of 5 %",
                do="raise splits.calibrate, or give route.file more questions",
            )
        policy = policy or Policy()
        near = Space.of(lessons, embed=embed, name=space, seed=seed) if lessons else None
        learn, prove = halves(len(attempts), seed)
        scorer, unseen = fit_scorer(describe([attempts[i] for i in learn], near), 1 - wrong[learn], seed=seed)
        scores = scorer.scores(describe([attempts[i] for i in prove], near))
        threshold, promise = _decided(policy, unseen, wrong[learn], scores, wrong[prove])
        shown = scores[np.isfinite(scores)]
        deciles = np.quantile(shown, np.linspace(0, 1, 11)).tolist() if len(shown) else []
        return Cascade(scorer, near, threshold, promise, policy, deciles)

    def scores(self, attempts: Sequence[Attempt]) -> Floats:
        """[attempts] in 0..1, higher is better; minus infinity where a feature is missing."""
        return self.scorer.scores(describe(attempts, self.space))

    def decide(self, attempt: Attempt) -> Decision:
        """Whether the student's answer is kept; some tenths of a millisecond, and no model is called."""
        score = float(self.scores([attempt])[0])
        if not np.isfinite(score):
            missing = [
                name for name in self.scorer.features if np.isnan(describe([attempt], self.space)[name][0])
            ]
            return Decision(False, None, None, f"the answer does not show its {', '.join(missing)}")
        chance = float(self.scorer.chance(np.array([score]))[0])
        if self.threshold is None:
            return Decision(False, score, chance, "nothing can be promised, so that no answer is kept")
        keep = score >= self.threshold
        return Decision(keep, score, chance, "sure enough" if keep else "not sure enough")

    def save(self, path: Path) -> None:
        """Write cascade.json: plain JSON, which holds the sums of the lessons' questions but no text.

        Raises:
            StorageFault: the file cannot be written.
        """
        tree = {
            "what": "stillroom cascade",
            "format": _FORMAT,
            "says": self.promise.sentences,
            "threshold": self.threshold,
            "policy": asdict(self.policy),
            "promise": asdict(self.promise),
            "deciles": self.deciles,
            "scorer": self.scorer.to_json(),
            "space": self.space.to_json() if self.space else None,
        }
        write_json(path, tree)

    @staticmethod
    def load(path: Path, *, embed: Embed = hashed_ngrams, space: str = "hashed n-grams") -> Cascade:
        """Back from `save`, with the same `embed`.

        Raises:
            DataError: the file is missing, no cascade's, of a later format, or was fitted with another `embed`.
        """
        tree = read_json(path)
        if (
            not isinstance(tree, dict)
            or tree.get("what") != "stillroom cascade"
            or tree.get("format") != _FORMAT
        ):
            raise DataError(
                f"{path} is no cascade that this stillroom reads",
                got=f"format {tree.get('format')}" if isinstance(tree, dict) else type(tree).__name__,
                expected=f"a cascade.json of format {_FORMAT}",
                do="run the recipe's route stage again",
            )
        try:
            near = Space.from_json(tree["space"], embed) if tree["space"] else None
            found = Cascade(
                Scorer.from_json(tree["scorer"]),
                near,
                tree["threshold"],
                Promise(**tree["promise"]),
                Policy(**tree["policy"]),
                tree["deciles"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is damaged", got=repr(error), do="run the recipe's route stage again"
            ) from None
        if near and near.name != space:
            raise DataError(
                f"{path} was fitted with other vectors of questions",
                got=space,
                expected=near.name,
                do="load it with the embedder that it was fitted with",
            )
        return found


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of `count` questions are learned from, and which prove; each in rising order."""
    shuffled = np.random.default_rng(seed).permutation(count)
    return np.sort(shuffled[: count // 2]), np.sort(shuffled[count // 2 :])


def _decided(
    policy: Policy, unseen: Floats, wrong: Floats, scores: Floats, worse: Floats
) -> tuple[float | None, Promise]:
    """The threshold, and what holds with it.

    Args:
        unseen: [learned from] left-out scores.
        wrong: [learned from] whether each answer is worse.
        scores: [proving].
        worse: [proving].
    """
    threshold, why = None, None
    if policy.max_error is not None:
        threshold, why = provable_threshold(unseen, wrong, scores, worse, policy.max_error, policy.confidence)
    held = threshold is not None
    sent_on = 1.0 if threshold is None else float(np.mean(scores < threshold))
    if policy.cap is not None and sent_on > policy.cap:
        if held:
            why = f"it would take {sent_on:.1%} of the questions sent on, and {policy.cap:.1%} are allowed"
        # From the first half, so that the bound on the second is that of a rule fixed beforehand.
        threshold, held = float(np.quantile(unseen, policy.cap, method="lower")), False
    kept = scores >= (np.inf if threshold is None else threshold)
    return threshold, Promise(
        held,
        policy.confidence,
        int(worse[kept].sum()),
        int(kept.sum()),
        len(worse),
        float(worse.mean()),
        policy.max_error,
        why,
    )


def provable_threshold(
    unseen: Values, wrong: Values, scores: Values, worse: Values, max_error: float, confidence: float
) -> tuple[float | None, str | None]:
    """The lowest threshold of which an error bound is proved, or None and why there is none.

    From the first half come the thresholds, two hundredths of its answers apart; where to begin: at that of the smallest
    p-value to be expected; and the order: from there to ever lower ones, until one fails. The second half only tests.

    Args:
        unseen: [learned from] scores of answers that the scorer had not seen.
        wrong: [learned from] whether each is worse than the teacher's.
        scores: [proving].
        worse: [proving].
        max_error: of the kept answers, the share that may be worse.
        confidence: of the proof.
    """
    seen, seen_wrong = np.asarray(unseen, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    proving, proving_worse = np.asarray(scores, dtype=np.float64), np.asarray(worse, dtype=np.float64)
    if why := too_few(len(proving), max_error, confidence):
        return None, why
    shares = np.arange(_CANDIDATES - 1, -1, -1) / _CANDIDATES
    candidates = np.unique(np.quantile(seen, shares, method="lower"))[::-1]
    candidates = candidates[np.isfinite(candidates)]
    wrongs, kepts = _counts(seen, seen_wrong, candidates)
    scale = len(proving) / len(seen)
    expected = [
        binomial_at_most(min(round(k * scale), round((w + 0.5) * scale)), round(k * scale), max_error)
        for w, k in zip(wrongs, kepts, strict=True)
    ]
    if not expected:
        return None, "no answer shows all that the scorer goes by"
    order = candidates[int(np.argmin(expected)) :]
    wrongs, kepts = _counts(proving, proving_worse, order)
    fallen = fixed_sequence(wrongs, kepts, max_error, confidence)
    if fallen:
        return float(order[fallen - 1]), None
    return None, (
        f"of the {kepts[0]:,} answers that look best among {len(proving):,} set apart, {wrongs[0]:,} are worse, which is "
        f"too many, or too few to be sure"
    )


def _counts(scores: Floats, wrong: Floats, thresholds: Floats) -> tuple[list[int], list[int]]:
    """For each threshold, how many of the answers from there on are worse, and how many there are."""
    order = np.argsort(-scores, kind="stable")
    sums = np.concatenate([[0], np.cumsum(wrong[order])])
    kept = np.searchsorted(-scores[order], -thresholds, side="right")
    return sums[kept].astype(int).tolist(), kept.tolist()
