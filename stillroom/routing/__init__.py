"""When is the student's answer good enough? Features, a calibrated score, and a bound that is proved; numpy only."""

from stillroom.routing.cascade import Cascade, Decision, halves
from stillroom.routing.curves import Curve, escalation_curve
from stillroom.routing.features import Attempt
from stillroom.routing.policies import Policy
from stillroom.routing.promises import Promise
from stillroom.routing.rows import curve_rows
from stillroom.routing.space import Space, hashed_ngrams

__all__ = [
    "Attempt",
    "Cascade",
    "Curve",
    "Decision",
    "Policy",
    "Promise",
    "Space",
    "curve_rows",
    "escalation_curve",
    "halves",
    "hashed_ngrams",
]
