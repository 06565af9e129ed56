"""Intervals, paired tests, calibration and repeated tries; numpy only."""

from stillroom.stats.attempts import pass_at_k
from stillroom.stats.calibration import Bin, brier, expected_calibration_error, reliability_curve
from stillroom.stats.intervals import (
    Interval,
    bootstrap_mean,
    paired_bootstrap_difference,
    paired_bootstrap_ratio,
    wilson,
)
from stillroom.stats.paired import holm, items_to_tell, mcnemar_exact, sign_flip

__all__ = [
    "Bin",
    "Interval",
    "bootstrap_mean",
    "brier",
    "expected_calibration_error",
    "holm",
    "items_to_tell",
    "mcnemar_exact",
    "paired_bootstrap_difference",
    "paired_bootstrap_ratio",
    "pass_at_k",
    "reliability_curve",
    "sign_flip",
    "wilson",
]
