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
    holm,
    items_to_tell,
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


def every_studentised(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The studentised interval of mean(a) / mean(b), from every resample that there is."""
    value, n = a.mean() / b.mean(), len(a)
    draws = np.array(list(itertools.product(range(n), repeat=n)))
    pivots = []
    for mine, others in zip(a[draws], b[draws], strict=True):
        ratio = mine.mean() / others.mean()
        error = math.sqrt(sum((x - ratio * y) ** 2 for x, y in zip(mine, others, strict=True))) / others.sum()
        if error > 1e-12:
            pivots.append((ratio - value) / error)
    error = math.sqrt(((a - value * b) ** 2).sum()) / b.sum()
    low, high = np.quantile(pivots, [0.025, 0.975])
    return value - high * error, value - low * error


def test_the_bootstrap_of_a_mean_equals_the_enumeration_of_every_resample() -> None:
    values = np.array([-5.0, 0.3, 1.0, 2.0, 4.1, 9.5])
    ours = bootstrap_mean(values, seed=3, resamples=100_000)
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(every_studentised(values, np.ones(6)), abs=0.06)


def test_the_bootstrap_of_a_ratio_equals_the_enumeration_of_every_resample() -> None:
    student, teacher = np.array([-2.0, 1.0, 1.1, 2.0, 0.5, 3.0]), np.array([1.0, 1.0, 2.0, 2.0, 3.0, 1.5])
    ours = paired_bootstrap_ratio(student, teacher, seed=1, resamples=100_000)
    assert ours.value == pytest.approx(student.sum() / teacher.sum())
    assert (ours.low, ours.high) == pytest.approx(every_studentised(student, teacher), abs=0.02)


def test_no_mean_is_thought_to_lie_beyond_all_items_however_few_and_unlike_they_are() -> None:
    values = [0.01, 0.02, 0.01, 2.0, 2.1, 2.2, 0.01, 0.02, -0.01]
    found = bootstrap_mean(values)
    assert -0.01 <= found.low < found.value < found.high <= 2.2
    assert paired_bootstrap_ratio([2.5], [2.0]) == (1.25, 1.25, 1.25)


def test_the_share_of_a_kind_of_verdicts_is_drawn_from_its_beta_distribution() -> None:
    one, other = [1] * 30 + [0] * 70, [1] * 100
    ours = paired_bootstrap_difference(one, other, resamples=100_000)
    shares = np.random.default_rng(5).dirichlet([30.5, 0.5, 70.5, 0.5], 400_000)
    assert ours.value == pytest.approx(-0.7)
    expected = np.quantile(shares[:, 1] - shares[:, 2], [0.025, 0.975])
    assert (ours.low, ours.high) == pytest.approx(tuple(expected), abs=2e-3)


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


def test_models_that_never_disagree_are_not_known_to_be_equal() -> None:
    for n in (20, 200, 2000):
        verdicts = np.arange(n) % 4 > 0
        ratio = paired_bootstrap_ratio(verdicts, verdicts)
        difference = paired_bootstrap_difference(verdicts, verdicts)
        assert (ratio.value, difference.value) == (1, 0)
        assert 1.5 / n < difference.high < 4 / n
        assert ratio.low < 1 < ratio.high
    with pytest.raises(ValueError, match="nothing to be retained"):
        paired_bootstrap_ratio([1.0], [0.0], seed=0)
    assert (
        paired_bootstrap_difference([0] * 100, [1] * 100).low == -1
    )  # the estimate lies inside, even at the edge


# Coverage over 1,000 simulated evaluations. 1,000 runs know a coverage to 0.7 points (one standard error).

RUNS = 1000


def verdicts_of(
    generator: np.random.Generator, n: int, share: float, kept: float
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher and student: right where the teacher is in `kept` of the cases, and in a few where it is not."""
    teacher = generator.random(n) < share
    return teacher, np.where(teacher, generator.random(n) < kept, generator.random(n) < (1 - kept) / 2)


@pytest.mark.parametrize("n", [100, 300, 1000])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.9, 0.98])
def test_wilsons_intervals_hold_the_truth_in_93_to_97_of_100_runs(n: int, share: float) -> None:
    rights = np.random.default_rng(7).binomial(n, share, RUNS)
    held = [share_of.low <= share <= share_of.high for share_of in (wilson(int(k), n) for k in rights)]
    exact = sum(
        p
        for k, p in enumerate(scipy_stats.binom(n, share).pmf(range(n + 1)))
        if wilson(k, n).low <= share <= wilson(k, n).high
    )
    assert 0.93 <= exact <= 0.97
    assert np.mean(held) == pytest.approx(exact, abs=0.025)


@pytest.mark.parametrize(
    ("n", "share", "kept"),
    [(100, 0.6, 0.9), (100, 0.8, 0.9), (100, 0.9, 0.9), (200, 0.8, 0.97), (300, 0.98, 0.97), (1000, 0.9, 0.97)],
)  # fmt: skip
def test_paired_intervals_hold_the_truth_in_93_to_97_of_100_runs(n: int, share: float, kept: float) -> None:
    generator, ratios, differences = np.random.default_rng(11), 0, 0
    truth = share * kept + (1 - share) * (1 - kept) / 2
    for seed in range(RUNS):
        teacher, student = verdicts_of(generator, n, share, kept)
        ratio = paired_bootstrap_ratio(student, teacher, seed, resamples=1000)
        difference = paired_bootstrap_difference(student, teacher, seed, resamples=1000)
        ratios += ratio.low <= truth / share <= ratio.high
        differences += difference.low <= truth - share <= difference.high
    assert 0.93 <= ratios / RUNS <= 0.97, ratios
    assert 0.93 <= differences / RUNS <= 0.97, differences


def test_intervals_of_models_that_hardly_ever_disagree_hold_more_often_than_they_say() -> None:
    """One item of a hundred: no interval of 95 % holds in 95 % where the data can only come out in three ways."""
    generator, held = np.random.default_rng(2), 0
    for seed in range(RUNS):
        teacher, student = verdicts_of(generator, 100, 0.9, 0.99)
        difference = paired_bootstrap_difference(student, teacher, seed, resamples=400)
        held += difference.low <= 0.9 * 0.99 + 0.1 * 0.005 - 0.9 <= difference.high
    assert held / RUNS >= 0.97, held


@pytest.mark.parametrize(
    ("lessons", "shape", "least"), [(100, 2.0, 0.91), (200, 2.0, 0.93), (500, 1.0, 0.93)]
)
def test_intervals_of_loss_a_token_hold_the_truth_though_lessons_differ_in_length_and_hardness(
    lessons: int, shape: float, least: float
) -> None:
    """At a hundred lessons whose lengths spread as widely as their mean, the interval is a little short: 92 %."""
    generator, losses, means = np.random.default_rng(3), 0, 0
    for seed in range(RUNS):
        tokens = generator.geometric(1 / 40, lessons) + 1
        loss = tokens * generator.gamma(shape, 0.5 / shape, lessons)
        found = paired_bootstrap_ratio(loss, tokens, seed, resamples=400)
        losses += found.low <= 0.5 <= found.high
        mean = bootstrap_mean(generator.beta(4, 1, lessons), seed, resamples=400)
        means += mean.low <= 0.8 <= mean.high
    assert least <= losses / RUNS <= 0.97, losses
    assert 0.93 <= means / RUNS <= 0.97, means


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


def test_holm_stops_at_the_first_comparison_that_it_does_not_believe() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.1, 1.2])


def test_holms_families_are_wrong_about_anything_in_at_most_5_of_100_cases() -> None:
    """Five comparisons with one model, which therefore hang together; two of them are of unequal models."""
    generator = np.random.default_rng(9)
    wrong = found = 0
    for _ in range(2000):
        shared = generator.standard_normal()
        z = (generator.standard_normal(5) + shared) / math.sqrt(2) + np.array([0, 0, 0, 3, 4])
        left = holm(2 * scipy_stats.norm.sf(np.abs(z)))
        wrong += min(left[:3]) < 0.05
        found += left[4] < 0.05
    assert wrong / 2000 <= 0.05
    assert found / 2000 > 0.85


@pytest.mark.parametrize(("difference", "disagreement"), [(0.01, 0.02), (0.01, 0.1), (0.05, 0.2)])
def test_so_many_items_find_the_difference_in_four_cases_of_five(
    difference: float, disagreement: float
) -> None:
    n = items_to_tell(difference, disagreement)
    generator = np.random.default_rng(4)
    shares = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    counts = generator.multinomial(n, shares, size=4000)
    found = [mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in counts]
    assert 0.75 <= np.mean(found) <= 0.82  # the exact test is a little stricter than the sum


def test_fewer_items_tell_apart_what_differs_more_or_disagrees_less() -> None:
    assert items_to_tell(0.01, 0.1) == 7847  # (.619795 + .266012)^2 / .0001
    assert items_to_tell(0.02, 0.1) < items_to_tell(0.01, 0.05) < items_to_tell(0.01, 0.1)
    assert items_to_tell(0.01, 0.0) == items_to_tell(0.01, 0.01)
    for wrong in ((0.0, 0.1), (0.1, 1.1)):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            items_to_tell(*wrong)
