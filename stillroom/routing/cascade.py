"""The cascade: the student keeps what it answers well enough, the teacher is asked for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_json, write_json
from stillroom.routing.features import NEAREST, Attempt, describe
from stillroom.routing.policies import Policy
from stillroom.routing.promises import Promise, too_few
from stillroom.routing.scorer import Scorer, fit_scorer
from stillroom.routing.space import Embed, Space, hashed_ngrams
from stillroom.stats import binomial_at_most, fewest_kept, fixed_sequence
from stillroom.stats.intervals import Floats, Values

_FORMAT = 1
_FEWEST = 40
"""Questions, under which there is nothing to fit five folds to."""
_CANDIDATES = 50
"""Thresholds that may be tested, two hundredths of the questions apart."""
_STRANGE = 0.005
"""Share of the questions learned from that lie furthest from the lessons; what lies as far is not the student's job."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one answer."""

    keep: bool
    """False: the teacher is asked."""
    score: float | None
    """In 0..1, held against the cascade's threshold; None where a feature is missing or the question is a strange one."""
    chance: float | None
    """The calibrated chance that the answer is as good as the teacher's."""
    why: str


@dataclass(frozen=True)
class Cascade:
    """A fitted rule: an answer is kept from `threshold` on; None keeps none.

    A question that is further from every lesson than all but one in 200 of those learned from goes to the teacher whatever
    the student says: a student is often sure of itself where it knows nothing.
    """

    scorer: Scorer
    space: Space | None
    nearest: float | None
    """The least cosine with a lesson at which a question is still the student's; None without a space."""
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
        described = describe([attempts[i] for i in learn], near)
        nearest = float(np.quantile(described[NEAREST], _STRANGE)) if near else None
        scorer, unseen = fit_scorer(described, 1 - wrong[learn], seed=seed)
        scores = _scores(scorer, nearest, describe([attempts[i] for i in prove], near))
        threshold, promise = _decided(policy, unseen, wrong[learn], scores, wrong[prove])
        shown = scores[np.isfinite(scores)]
        deciles = np.quantile(shown, np.linspace(0, 1, 11)).tolist() if len(shown) else []
        return Cascade(scorer, near, nearest, threshold, promise, policy, deciles)

    def scores(self, attempts: Sequence[Attempt]) -> Floats:
        """[attempts] in 0..1, higher is better; minus infinity where a feature is missing or the question is strange."""
        return _scores(self.scorer, self.nearest, describe(attempts, self.space))

    def decide(self, attempt: Attempt) -> Decision:
        """Whether the student's answer is kept; some tenths of a millisecond, and no model is called."""
        described = describe([attempt], self.space)
        score = float(_scores(self.scorer, self.nearest, described)[0])
        if not np.isfinite(score):
            missing = [name for name in self.scorer.features if np.isnan(described[name][0])]
            why = (
                f"the answer does not show its {', '.join(missing)}"
                if missing
                else "a question unlike all lessons"
            )
            return Decision(False, None, None, why)
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
            "nearest": self.nearest,
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
                tree["nearest"],
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


def _scores(scorer: Scorer, nearest: float | None, described: dict[str, Floats]) -> Floats:
    scores = scorer.scores(described)
    return scores if nearest is None else np.where(described[NEAREST] < nearest, -np.inf, scores)


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
    if not len(candidates):
        return None, "no answer shows all that the scorer goes by"
    wrongs, kepts = _counts(seen, seen_wrong, candidates)
    scale, needed = len(proving) / len(seen), fewest_kept(max_error, confidence)
    expected = [
        binomial_at_most(min(kept, round((w + 0.5) * scale)), kept, max_error) if kept >= needed else np.inf
        for w, kept in zip(wrongs, [round(k * scale) for k in kepts], strict=True)
    ]
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
