"""Distillation losses in plain PyTorch: tensors in, one value a token out.

    divergences   forward KL, reverse KL, Jensen-Shannon, skew KL, total variation over whole vocabularies
    targets       what a teacher can hand over: SparseTargets, TeacherHead
    sparse        forward KL against a few kept tokens of the teacher
    fused         the same terms straight from hidden states, chunk by chunk, never all the logits at once
    reduction     how token values become one loss

This room knows nothing of recipes, runs or models; faults of its arguments are ValueErrors.
"""

from stillroom.losses.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    total_variation,
)
from stillroom.losses.fused import FusedLoss, fused_linear_divergence
from stillroom.losses.reduction import reduce, token_weights
from stillroom.losses.sparse import sparse_forward_kl
from stillroom.losses.targets import SparseTargets, TeacherHead

__all__ = [
    "FusedLoss",
    "SparseTargets",
    "TeacherHead",
    "forward_kl",
    "fused_linear_divergence",
    "jensen_shannon",
    "reduce",
    "reverse_kl",
    "skew_kl",
    "sparse_forward_kl",
    "token_weights",
    "total_variation",
]
