"""Intervals and tests held against statsmodels, calibration against scikit-learn: other people's code for the same sums."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from stillroom.stats import (
    brier,
    expected_calibration_error,
    holm,
    mcnemar_exact,
    reliability_curve,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (60, 100), (98, 100), (713, 1000), (1, 2000)])
def test_wilsons_interval_is_statsmodels(successes: int, n: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(successes, n, 0.05, method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (3, 9), (40, 41), (200, 260)])
def test_mcnemars_exact_test_is_statsmodels(b: int, c: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    assert mcnemar_exact(b, c) == pytest.approx(tables.mcnemar([[50, b], [c, 50]], exact=True).pvalue)


def test_holms_correction_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        p_values = (generator.random(size) ** 3).tolist()
        assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1].tolist())


def test_calibration_is_scikit_learns_on_bins_of_equal_mass() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.beta(5, 1, 900)
    correct = generator.random(900) < confidence**2
    accuracies, means = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    curve = reliability_curve(confidence, correct, bins=15)
    assert [point.accuracy for point in curve] == pytest.approx(accuracies.tolist())
    assert [point.confidence for point in curve] == pytest.approx(means.tolist())
    assert expected_calibration_error(confidence, correct, bins=15) == pytest.approx(
        np.mean(np.abs(accuracies - means))  # 60 items in each of the bins
    )
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))
