"""Bounds on the error of what is kept, and isotonic calibration: held against scipy, scikit-learn and simulation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.isotonic import IsotonicRegression

from stillroom.stats import (
    binomial_at_most,
    clopper_pearson,
    fewest_kept,
    fixed_sequence,
    isotonic,
    least_escalated,
)

counts = st.integers(1, 800).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
shares = st.floats(0.001, 0.999)


@settings(deadline=None)
@given(counts, shares)
def test_the_binomial_tail_equals_scipys(pair: tuple[int, int], share: float) -> None:
    count, n = pair
    assert binomial_at_most(count, n, share) == pytest.approx(
        scipy_stats.binom.cdf(count, n, share), abs=1e-9
    )


@settings(deadline=None, max_examples=50)
@given(counts, st.floats(0.5, 0.999))
def test_clopper_pearson_equals_scipys(pair: tuple[int, int], confidence: float) -> None:
    count, n = pair
    theirs = scipy_stats.binomtest(count, n, alternative="less").proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, n, confidence) == pytest.approx(theirs.high, abs=1e-9)


@pytest.mark.parametrize(("wrong", "kept"), [(0, 59), (1, 93), (5, 208)])
def test_so_many_kept_items_are_needed_for_five_per_cent(wrong: int, kept: int) -> None:
    assert fewest_kept(0.05, 0.95, wrong) == kept
    assert clopper_pearson(wrong, kept) <= 0.05 < clopper_pearson(wrong, kept - 1)


def test_the_table_in_the_docs_is_true() -> None:
    page = (Path(__file__).parents[1] / "docs/cascade.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) % \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for allowed, *kept in rows:
        wanted = [fewest_kept(int(allowed) / 100, 0.95, wrong) for wrong in (0, 1, 5)]
        assert [int(number.replace(",", "")) for number in kept] == wanted


def test_a_router_must_send_on_at_least_the_wrong_answers_that_may_not_be_kept() -> None:
    # Of 100 answers 24 are wrong. Whoever sends on 20 wrong ones keeps 80, of which 4 are wrong: 5 %.
    assert least_escalated(0.24, 0.05) == pytest.approx(0.2)
    assert least_escalated(0.04, 0.05) == 0


def test_the_sequence_ends_at_the_first_rule_that_cannot_be_promised() -> None:
    assert fixed_sequence([0, 1, 40, 1], [59, 93, 200, 400], 0.05) == 2
    assert fixed_sequence([0], [58], 0.05) == 0
    assert fixed_sequence([], [], 0.05) == 0


def test_a_true_hypothesis_falls_no_more_often_than_allowed() -> None:
    """Twelve nested rules whose true errors rise past the allowed one; the first true hypothesis is the seventh."""
    rng, falls, rounds = np.random.default_rng(5), 0, 2000
    errors, sizes = np.linspace(0.05, 0.17, 12), np.full(12, 60)
    first_true = int(np.argmax(np.cumsum(errors * sizes) / np.cumsum(sizes) > 0.08))
    for _ in range(rounds):
        wrong = np.cumsum(rng.binomial(sizes, errors))
        falls += fixed_sequence(wrong.tolist(), np.cumsum(sizes).tolist(), 0.08, 0.9) > first_true
    assert falls / rounds <= 0.1 + 3 * (0.1 * 0.9 / rounds) ** 0.5
    assert falls > 0  # the rule is not merely timid


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60))
def test_isotonic_has_scikit_learns_steps(pairs: list[tuple[int, bool]]) -> None:
    scores, outcomes = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)
    places, values = isotonic(scores, outcomes)
    theirs = IsotonicRegression().fit(scores, outcomes)
    assert values == pytest.approx(np.unique(theirs.predict(scores).round(12)))
    assert (np.diff(places) > 0).all()
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial_at_most(3, 2, 0.5),
        lambda: clopper_pearson(0, 10, 1.0),
        lambda: fewest_kept(0.0),
        lambda: fixed_sequence([1], [2, 3], 0.05),
        lambda: isotonic([1.0], [1.0, 0.0]),
    ],
)
def test_what_makes_no_sense_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        call()  # type: ignore[operator]
