"""Intervals, paired tests, calibration, bounds on what is kept, and repeated tries; numpy only."""

from stillroom.stats.attempts import pass_at_k
from stillroom.stats.calibration import Bin, brier, expected_calibration_error, reliability_curve
from stillroom.stats.intervals import (
    Interval,
    bootstrap_mean,
    paired_bootstrap_difference,
    paired_bootstrap_ratio,
    wilson,
)
from stillroom.stats.isotonic import isotonic
from stillroom.stats.paired import holm, items_to_tell, mcnemar_exact, sign_flip
from stillroom.stats.selective import (
    binomial_at_most,
    clopper_pearson,
    fewest_kept,
    fixed_sequence,
    least_escalated,
)

__all__ = [
    "Bin",
    "Interval",
    "binomial_at_most",
    "bootstrap_mean",
    "brier",
    "clopper_pearson",
    "expected_calibration_error",
    "fewest_kept",
    "fixed_sequence",
    "holm",
    "isotonic",
    "items_to_tell",
    "least_escalated",
    "mcnemar_exact",
    "paired_bootstrap_difference",
    "paired_bootstrap_ratio",
    "pass_at_k",
    "reliability_curve",
    "sign_flip",
    "wilson",
]
