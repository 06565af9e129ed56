"""The cascade's parts: features, space, scorer, curve and the promise, on answers whose errors are known."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from stillroom.contracts.errors import DataError
from stillroom.routing import Attempt, Cascade, Policy, Promise, Space, escalation_curve, hashed_ngrams
from stillroom.routing.features import describe
from stillroom.routing.promises import feasibility
from stillroom.routing.scorer import _fit, fit_scorer

DATA = Path(__file__).parents[2] / "shared" / "data"


def benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "cascade.py"
    spec = importlib.util.spec_from_file_location("cascade_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["cascade_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def answers(count: int, seed: int = 0, error: float = 0.15) -> tuple[list[Attempt], np.ndarray]:
    """Attempts whose least likely token tells how likely they are to be worse, and whether they are."""
    rng = np.random.default_rng(seed)
    doubt = rng.random(count)
    worse = rng.random(count) < 4 * error * np.maximum(doubt - 0.5, 0) * 2
    found = []
    for place in range(count):
        logprobs = -rng.exponential(1e-3, rng.integers(5, 40))
        logprobs[rng.integers(len(logprobs))] -= doubt[place]
        question = " ".join(rng.choice(["parcel", "kettle", "refund", "late", "ladder", "broken"], 6))
        found.append(Attempt(f"{question} {place}", logprobs.tolist(), valid=bool(rng.random() < 0.98)))
    return found, worse


def test_features_are_those_of_the_tokens() -> None:
    half = float(np.log(0.5))
    attempt = Attempt("How late?", [half, 0.0, 0.0, 0.0], [[half, half], [0.0, -20.0]], valid=True)
    found = {name: float(column[0]) for name, column in describe([attempt], None).items()}
    assert found["whole answer"] == pytest.approx(np.log(-half + 1e-4))
    assert found["mean token"] == pytest.approx(np.log(-half / 4 + 1e-4))
    assert found["least likely token"] == found["whole answer"]
    assert found["median token"] == pytest.approx(np.log(1e-4))
    assert found["least margin"] == 0
    assert found["mean margin"] == pytest.approx(10)
    assert found["most entropy"] == pytest.approx(np.log(np.log(2) + 1e-4))
    assert found["tokens"] == pytest.approx(np.log(4))
    assert found["valid"] == 1
    assert np.isnan(found["complete"])


def test_a_taught_question_is_nearest_to_itself_and_far_from_another_subject() -> None:
    space = Space.of(["Where is my parcel?", "The kettle is broken.", "I want my money back."])
    near = space.nearness(["where is my  PARCEL?", "Tell me a joke about goats."])
    assert near[0, 0] > 0.98
    assert near[1, 0] < 0.6
    assert (near[:, 1] <= near[:, 0]).all()


def test_hashed_ngrams_keep_cosines() -> None:
    """Of texts that share half of their words; the exact cosine is of the shingles' own counts."""
    from collections import Counter

    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("abcdefghij"), 7)) for _ in range(200)]
    errors = []
    for _ in range(60):
        common = rng.choice(words, 10).tolist()
        pair = [" ".join([*common, *rng.choice(words, 10).tolist()]) for _ in range(2)]
        counts = [Counter(text[at : at + 5] for at in range(len(text) - 4)) for text in pair]
        dot = sum(counts[0][key] * counts[1][key] for key in counts[0])
        exact = dot / np.sqrt(np.prod([sum(v * v for v in c.values()) for c in counts], dtype=float))
        a, b = hashed_ngrams(pair)
        errors.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) - exact)
    assert np.sqrt(np.mean(np.square(errors))) < 0.08


def test_logistic_regression_equals_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5))
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ [1.0, -2.0, 0.0, 0.5, 0.0] + 1)))).astype(float)
    weights, bias = _fit(x, y, 3.0)
    theirs = LogisticRegression(C=1 / 3.0, tol=1e-9, max_iter=1000).fit(x, y)
    assert weights == pytest.approx(theirs.coef_[0], abs=2e-3)
    assert bias == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_scores_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(2)
    column, good = rng.normal(size=300), (rng.random(300) < 0.7).astype(float)
    plain, _ = fit_scorer({"a": column}, good)
    scaled, _ = fit_scorer({"a": 1000 * column + 7}, good)
    assert plain.scores({"a": column}) == pytest.approx(scaled.scores({"a": 1000 * column + 7}))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2), st.integers(0, 1000))
def test_hopeless_outcomes_are_fitted_without_fault(kind: int, seed: int) -> None:
    """All good, all worse, or good wherever a feature says so."""
    column = np.random.default_rng(seed).normal(size=60)
    good = [np.ones(60), np.zeros(60), (column > 0).astype(float)][kind]
    scorer, unseen = fit_scorer({"a": column, "constant": np.ones(60)}, good, seed)
    scores = scorer.scores({"a": column, "constant": np.ones(60)})
    assert scorer.features == ["a"]
    assert np.isfinite(scores).all()
    assert np.isfinite(unseen).all()
    assert ((scorer.chance(scores) >= 0) & (scorer.chance(scores) <= 1)).all()


def test_the_chance_is_calibrated_on_answers_that_were_not_seen() -> None:
    attempts, worse = answers(4000, seed=4)
    cascade = Cascade.fit(attempts[:2000], worse[:2000])
    chances = cascade.scorer.chance(cascade.scores(attempts[2000:]))
    order = np.argsort(chances)
    for part in np.array_split(order, 4):
        assert chances[part].mean() == pytest.approx(1 - worse[2000:][part].mean(), abs=0.06)


def test_the_curve_of_an_oracle_of_chance_and_of_a_tie() -> None:
    student, teacher = np.array([0, 0, 1, 1, 0, 1]), np.array([1, 1, 1, 1, 0, 0])
    curve = escalation_curve(np.zeros(6), student, teacher)
    assert curve.quality == pytest.approx([curve.random(share) for share in curve.shares])
    assert curve.apgr == pytest.approx(0.5)
    best = escalation_curve([0, 0, 1, 1, 1, 2], student, teacher)
    assert best.quality == pytest.approx(best.oracle)
    assert best.quality.max() == pytest.approx(5 / 6)
    assert best.cpt(0.5) == pytest.approx(1 / 6)
    assert escalation_curve([1.0, 2.0], [1, 1], [1, 0]).apgr is None


def test_a_cascade_decides_alike_after_saving(tmp_path: Path) -> None:
    attempts, worse = answers(1200)
    cascade = Cascade.fit(attempts, worse, lessons=[a.question for a in answers(50, seed=9)[0]])
    cascade.save(tmp_path / "cascade.json")
    back = Cascade.load(tmp_path / "cascade.json")
    fresh, _ = answers(200, seed=5)
    assert [back.decide(attempt) for attempt in fresh] == [cascade.decide(attempt) for attempt in fresh]
    assert {decision.keep for decision in map(back.decide, fresh)} == {True, False}
    assert back.promise == cascade.promise
    assert "nearest lesson" in back.scorer.features
    text = (tmp_path / "cascade.json").read_text()
    assert "ladder" not in text  # no question is in the file


def test_an_answer_without_logprobs_goes_to_the_teacher() -> None:
    attempts, worse = answers(600)
    cascade = Cascade.fit(attempts, worse)
    decision = cascade.decide(replace(attempts[0], logprobs=None))
    assert not decision.keep
    assert decision.score is None
    assert "whole answer" in decision.why


def test_a_strange_question_goes_to_the_teacher_however_sure_the_student_is() -> None:
    attempts, worse = answers(800)
    cascade = Cascade.fit(attempts, worse, lessons=[attempt.question for attempt in answers(200, seed=9)[0]])
    sure = [-1e-6] * 10
    assert cascade.decide(Attempt("parcel late kettle broken 7", sure, valid=True)).keep
    decision = cascade.decide(Attempt("Sing to me of the wrath of Achilles", sure, valid=True))
    assert not decision.keep
    assert "unlike all lessons" in decision.why


def test_the_scale_of_left_out_scores_is_the_scorers_own() -> None:
    """With few worse answers and a strong ridge, folds of their own scale would lie beside every score to come."""
    for seed in range(20):
        attempts, worse = answers(400, seed=seed, error=0.05)
        described = describe(attempts[:200], None)
        scorer, unseen = fit_scorer(described, 1.0 - worse[:200], seed)
        assert np.sort(unseen) == pytest.approx(np.sort(scorer.scores(described)))
        fresh = scorer.scores(describe(attempts[200:], None))
        assert 0.2 < (fresh >= np.median(unseen)).mean() < 0.8


def test_the_question_alone_can_decide() -> None:
    rng = np.random.default_rng(8)
    known = ["Where is my parcel number ", "My kettle is broken, number ", "Please refund order number "]
    odd = rng.random(800) < 0.3
    text = [f"Sing of {i} seas" if odd[i] else known[i % 3] + str(i) for i in range(800)]
    cascade = Cascade.fit([Attempt(t) for t in text], odd, lessons=[k + "17" for k in known])
    assert cascade.promise.held
    assert cascade.decide(Attempt("Where is my parcel number 4?")).keep
    assert not cascade.decide(Attempt("Sing of 5 seas")).keep


def test_feasibility_comes_first_and_too_few_questions_are_told() -> None:
    attempts, worse = answers(100)
    promise = Cascade.fit(attempts, worse).promise
    assert not promise.held
    assert "59 kept answers" in promise.sentences[1]
    assert "sends 20 % of the questions on" in feasibility(0.24, 0.05)
    none = Cascade.fit(attempts, worse).decide(attempts[0])
    assert not none.keep


def test_an_error_that_no_threshold_avoids_is_not_promised() -> None:
    attempts, _ = answers(1000)
    worse = np.random.default_rng(123).random(1000) < 0.3
    cascade = Cascade.fit(attempts, worse)
    assert not cascade.promise.held
    assert cascade.threshold is None
    assert any("cannot be promised" in said for said in cascade.promise.sentences)


def test_caps_go_before_promises() -> None:
    attempts, worse = answers(2000, error=0.3)
    free = Cascade.fit(attempts, worse, policy=Policy(max_error=0.02))
    assert free.promise.held
    assert free.promise.escalated > 0.2
    capped = Cascade.fit(attempts, worse, policy=Policy(max_error=0.02, max_share=0.1))
    assert not capped.promise.held
    assert capped.promise.escalated == pytest.approx(0.1, abs=0.03)
    assert capped.promise.bound is not None
    assert "10.0% are allowed" in " ".join(capped.promise.sentences)
    dear = Policy(max_error=None, max_cost=2.0, escalation_cost=0.01)
    assert dear.cap == pytest.approx(0.2)
    assert Cascade.fit(attempts, worse, policy=dear).promise.escalated == pytest.approx(0.2, abs=0.04)


def test_a_promise_holds_in_the_world_that_it_was_made_in() -> None:
    """The whole way, features to threshold, judged by 5,000 fresh answers; the other tests skip the features."""
    fresh, truth = answers(5_000, seed=99)
    described = describe(fresh, None)
    broken = promised = 0
    for seed in range(40):
        attempts, worse = answers(600, seed=seed)
        cascade = Cascade.fit(attempts, worse, policy=Policy(max_error=0.1), seed=seed)
        if cascade.promise.held:
            promised += 1
            kept = cascade.scorer.scores(described) >= cascade.threshold
            broken += truth[kept].mean() > 0.1
    assert promised >= 30
    assert broken <= 6  # 0.05 * 40 and three standard deviations


@pytest.mark.parametrize(
    "curve", ["falls evenly", "a hair over the bound, everywhere", "misleading at the top"]
)
def test_promises_over_known_errors_are_broken_no_more_often_than_allowed(curve: str) -> None:
    cascade = benchmark()
    found = cascade.simulate(cascade.CURVES[curve], max_error=0.1, questions=600, draws=300)
    assert found.broken / found.draws <= 0.05 + 3 * (0.05 * 0.95 / found.draws) ** 0.5
    if curve == "falls evenly":
        assert found.promised > 0.2 * found.draws


def test_promises_over_real_predictions_are_broken_no_more_often_than_allowed() -> None:
    if not DATA.is_dir():
        pytest.skip("no material beside the project")
    cascade = benchmark()
    scores, worse = cascade.mmlu_pro(DATA, cascade.TEACHERS[0])
    for max_error in (0.2, 0.3):
        found = cascade.draw_promises(scores, worse, max_error=max_error, questions=600, draws=200)
        assert found.broken / found.draws <= 0.05 + 3 * (0.05 * 0.95 / found.draws) ** 0.5
        assert found.promised > 0.5 * found.draws
        assert found.kept > 0.2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: {**tree, "format": 2},
        lambda tree: {**tree, "what": "something else"},
        lambda tree: {key: value for key, value in tree.items() if key != "scorer"},
        lambda tree: {**tree, "space": {"name": "hashed n-grams", "width": 256, "lessons": "!"}},
        lambda tree: {**tree, "space": {**tree["space"], "name": "an encoder"}},
        lambda tree: [],
    ],
)
def test_a_file_that_is_no_such_cascade_is_refused(tmp_path: Path, spoil: object) -> None:
    attempts, worse = answers(100)
    path = tmp_path / "cascade.json"
    Cascade.fit(attempts, worse, lessons=["a lesson"]).save(path)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        Cascade.load(path)
    assert caught.value.do


def test_what_makes_no_sense_is_refused() -> None:
    attempts, worse = answers(50)
    with pytest.raises(DataError, match="too few questions"):
        Cascade.fit(attempts[:10], worse[:10])
    with pytest.raises(ValueError, match="a verdict an attempt"):
        Cascade.fit(attempts, worse[:10])
    with pytest.raises(ValueError, match="needs max_error"):
        Policy(max_error=None)
    with pytest.raises(ValueError, match="escalation_cost"):
        Policy(max_cost=1.0)
    with pytest.raises(ValueError, match="max_error"):
        Policy(max_error=1.5)
    assert Promise(False, 0.95, 0, 0, 10, 0.0).bound is None
