"""Intervals, paired tests and calibration, held against scipy, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from stillroom.stats import (
    bootstrap_mean,
    brier,
    expected_calibration_error,
    mcnemar_exact,
    paired_bootstrap_difference,
    paired_bootstrap_ratio,
    pass_at_k,
    reliability_curve,
    sign_flip,
    wilson,
)

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(counts)
def test_wilson_equals_scipys(pair: tuple[int, int]) -> None:
    successes, n = pair
    ours = wilson(successes, n)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert ours.value == successes / n
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_equals_the_binomial_test(b: int, c: int) -> None:
    expected = scipy_stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_copes_with_large_counts() -> None:
    assert mcnemar_exact(60_000, 61_000) == pytest.approx(
        scipy_stats.binomtest(60_000, 121_000, 0.5).pvalue, rel=1e-6
    )


def test_bootstrap_mean_equals_the_enumeration_of_every_resample() -> None:
    values = [0.0, 0.3, 1.0, 4.0, 4.5]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=len(values))]
    low, high = np.quantile(means, [0.025, 0.975])
    ours = bootstrap_mean(values, seed=3, resamples=200_000)
    assert ours.value == pytest.approx(np.mean(values))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.06)


def test_bootstrap_ratio_equals_the_enumeration_of_every_resample() -> None:
    student, teacher = [0.0, 1.0, 1.0, 2.0, 0.5], [1.0, 1.0, 2.0, 2.0, 3.0]
    pairs = list(zip(student, teacher, strict=True))
    draws = np.array(list(itertools.product(pairs, repeat=len(pairs))))
    ratios = draws[..., 0].sum(axis=1) / draws[..., 1].sum(axis=1)
    ours = paired_bootstrap_ratio(student, teacher, seed=1, resamples=100_000)
    assert ours.value == pytest.approx(sum(student) / sum(teacher))
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.02)


def test_intervals_do_not_depend_on_how_resamples_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(values, seed=5)
    monkeypatch.setattr("stillroom.stats.intervals._DRAWS_AT_ONCE", 50 * 7)
    assert bootstrap_mean(values, seed=5) == whole


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_the_sign_flip_test_is_the_enumeration_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.2, 0.25, -0.05, 0.4, 0.1, 0.15])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=8)]
    exact = np.mean(np.array(sums) >= differences.sum() - 1e-12)
    assert sign_flip(differences, flips=40_000) == pytest.approx(exact, rel=0.1)
    assert sign_flip(-differences, seed=3) == sign_flip(differences, seed=3)
    assert sign_flip([0.0, 0.0]) == 1.0
    for wrong in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite and at least one"):
            sign_flip(wrong)


def test_the_sign_flip_test_is_wrong_about_as_seldom_as_it_says() -> None:
    generator = np.random.default_rng(5)
    alarms = [sign_flip(generator.standard_t(3, 40), seed, flips=199) <= 0.05 for seed in range(600)]
    assert 0.025 <= np.mean(alarms) <= 0.08


def test_pairing_narrows_the_difference_of_models_that_fail_alike() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(400) < 0.4
    first, second = ~hard, ~hard & (generator.random(400) < 0.97)
    paired = paired_bootstrap_difference(first, second, seed=0)
    shuffled = paired_bootstrap_difference(first, generator.permutation(second), seed=0)
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_a_resample_without_a_right_teacher_has_no_retention() -> None:
    interval = paired_bootstrap_ratio([1, 0, 0, 0], [1, 0, 0, 0], seed=0)
    assert interval == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="nothing to be retained"):
        paired_bootstrap_ratio([1.0], [0.0], seed=0)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(11)
    held = dict.fromkeys(("wilson", "ratio", "difference"), 0)
    trials = 400
    for seed in range(trials):
        teacher = generator.random(200) < 0.8
        student = np.where(teacher, generator.random(200) < 0.9, generator.random(200) < 0.3)
        truth_student = 0.8 * 0.9 + 0.2 * 0.3
        share = wilson(int(teacher.sum()), 200)
        ratio = paired_bootstrap_ratio(student, teacher, seed, resamples=400)
        difference = paired_bootstrap_difference(student, teacher, seed, resamples=400)
        held["wilson"] += share.low <= 0.8 <= share.high
        held["ratio"] += ratio.low <= truth_student / 0.8 <= ratio.high
        held["difference"] += difference.low <= truth_student - 0.8 <= difference.high
    assert all(0.91 <= count / trials <= 0.98 for count in held.values()), held


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]]])
def test_intervals_refuse_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"equally long|finite"):
        bootstrap_mean(values)


def test_a_perfectly_calibrated_model_has_a_small_error_and_a_boaster_its_boast() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(200_000)
    correct = generator.random(200_000) < confidence
    assert expected_calibration_error(confidence, correct) < 0.005
    assert brier(confidence, correct) == pytest.approx(1 / 6, abs=0.003)
    boast = np.minimum(confidence + 0.2, 1.0)
    assert expected_calibration_error(boast, correct) == pytest.approx(np.mean(boast - confidence), abs=0.01)


def test_calibration_error_equals_a_loop_over_equal_bins() -> None:
    generator = np.random.default_rng(2)
    confidence, correct = generator.random(150), generator.random(150) < 0.5
    order = np.argsort(confidence)
    expected = 0.0
    for group in np.split(order, 15):
        expected += 10 / 150 * abs(correct[group].mean() - confidence[group].mean())
    assert expected_calibration_error(confidence, correct, bins=15) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60),
    st.randoms(),
)
def test_the_order_of_items_with_equal_confidence_does_not_matter(
    items: list[tuple[float, bool]], random: object
) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    curves = [
        reliability_curve([c for c, _ in group], [right for _, right in group], bins=4)
        for group in (items, shuffled)
    ]
    assert np.allclose(curves[0], curves[1])
    assert sum(point.n for point in curves[0]) == len(items)
    assert all(point.low <= point.accuracy <= point.high for point in curves[0])


def test_bins_hold_equally_many_items() -> None:
    curve = reliability_curve(np.linspace(0, 1, 100), np.ones(100), bins=15)
    assert len(curve) == 15
    assert {point.n for point in curve} <= {6, 7}


def test_fewer_items_than_bins_is_one_bin_an_item() -> None:
    assert [point.n for point in reliability_curve([0.2, 0.7, 0.9], [0, 1, 1], bins=15)] == [1, 1, 1]


@pytest.mark.parametrize(("confidence", "correct"), [([], []), ([1.2], [1]), ([0.5], [0.5]), ([0.5], [1, 0])])
def test_calibration_refuses_what_is_no_confidence_or_verdict(
    confidence: list[float], correct: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"must|expected"):
        expected_calibration_error(confidence, correct)


@pytest.mark.parametrize(("attempts", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 6), (7, 3)])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_try(attempts: int, right: int) -> None:
    tries = [True] * right + [False] * (attempts - right)
    for k in range(1, attempts + 1):
        choices = list(itertools.combinations(tries, k))
        assert pass_at_k(attempts, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_right_on_average_where_the_plain_power_is_not() -> None:
    chance, attempts, k = 0.3, 6, 4
    counts = scipy_stats.binom(attempts, chance).pmf(range(attempts + 1))
    ours = sum(share * pass_at_k(attempts, right, k) for right, share in enumerate(counts))
    assert ours == pytest.approx(1 - (1 - chance) ** k)
    plain = sum(share * (1 - (1 - right / attempts) ** k) for right, share in enumerate(counts))
    assert plain < ours - 0.01


@pytest.mark.parametrize(("attempts", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_numbers_that_do_not_fit(attempts: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(attempts, right, k)
