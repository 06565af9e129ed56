"""Distillation losses in plain PyTorch: tensors in, one value a token out.

    divergences   forward and reverse KL, their skew forms, Jensen-Shannon, alpha-beta, total variation over
                  whole vocabularies
    taid          forward KL to a target that moves from the student to the teacher
    targets       what a teacher can hand over once for all: SparseTargets
    scores        its word on a few tokens of the student's choice: ScoredTokens
    heads         its hidden states and head: TeacherHead
    fits          whether what it said of a few tokens fits the student's logits
    sparse        forward KL against a few kept tokens of the teacher
    scored        reverse KL against the teacher's word on a few tokens of the student's choice
    fused         the same terms straight from hidden states, chunk by chunk, never all the logits at once;
                  out of terms (what is compared), slopes (gradients by dense logits) and products (of matrices)
    sharded       heads spread over ranks (DTensors under fully_shard): gathered, their gradients averaged
    layers        which layers of two models are matched
    hidden        hidden states: MSE, cosine, projections between widths, hints, weights of components
    attention     attention maps and query, key or value relations
    capture       queries, keys and values caught from a live model
    classify      classifiers: soft and hard labels, patience
    spans         two tokenisations of one text, aligned
    crosstoken    losses between models with different tokenizers
    reduction     how token values become one loss

This room knows nothing of recipes, runs or models; faults of its arguments are ValueErrors.
"""

from stillroom.losses.attention import attention_loss, attention_maps, relation_loss
from stillroom.losses.capture import Captured, capture_attention
from stillroom.losses.classify import classifier_loss, patience_loss
from stillroom.losses.crosstoken import span_aligned_loss, uld_loss
from stillroom.losses.divergences import (
    alpha_beta,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from stillroom.losses.fused import FusedLoss, fused_linear_divergence
from stillroom.losses.heads import TeacherHead
from stillroom.losses.hidden import Hint, MatchWeights, Projections, hidden_state_loss, weighted_components
from stillroom.losses.layers import map_layers
from stillroom.losses.reduction import reduce, token_weights
from stillroom.losses.scored import scored_reverse_kl, scored_skew_reverse_kl
from stillroom.losses.scores import ScoredTokens
from stillroom.losses.spans import Aligned, align_spans, byte_spans, shared_tokens, token_bytes
from stillroom.losses.sparse import renormalised_kl, sparse_forward_kl
from stillroom.losses.taid import TaidSchedule, taid
from stillroom.losses.targets import SparseTargets

__all__ = [
    "Aligned",
    "Captured",
    "FusedLoss",
    "Hint",
    "MatchWeights",
    "Projections",
    "ScoredTokens",
    "SparseTargets",
    "TaidSchedule",
    "TeacherHead",
    "align_spans",
    "alpha_beta",
    "attention_loss",
    "attention_maps",
    "byte_spans",
    "capture_attention",
    "classifier_loss",
    "forward_kl",
    "fused_linear_divergence",
    "hidden_state_loss",
    "jensen_shannon",
    "map_layers",
    "patience_loss",
    "reduce",
    "relation_loss",
    "renormalised_kl",
    "reverse_kl",
    "scored_reverse_kl",
    "scored_skew_reverse_kl",
    "shared_tokens",
    "skew_kl",
    "skew_reverse_kl",
    "span_aligned_loss",
    "sparse_forward_kl",
    "taid",
    "token_bytes",
    "token_weights",
    "total_variation",
    "uld_loss",
    "weighted_components",
]
