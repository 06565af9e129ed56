"""How far an ONNX file is from the classifier that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.errors import ParityError
from stillroom.models.classes import Logits
from stillroom.models.classifier import Classifier
from stillroom.models.onnx_classifier import OnnxClassifier

_MOST = 1e-3
"""By how much a log-probability of a file in float32 may differ: other kernels, another order of sums."""


@dataclass(frozen=True)
class Parity:
    """What was found over some texts.

    Args:
        max_logprob_error: the largest difference of a class's log-probability, nats.
        mean_kl: KL(model || file), mean over the texts, nats.
        top1_agreement: share of texts with the same likeliest class.
        tokens_equal: both read the same tokens.
    """

    max_logprob_error: float
    mean_kl: float
    top1_agreement: float
    tokens_equal: bool


def check_parity(model_dir: Path | str, folder: Path | str, texts: Sequence[str], *, exact: bool) -> Parity:
    """Compare a file with its model on texts.

    Args:
        model_dir: the classifier, a Hugging Face folder.
        folder: with model.onnx, as `export` writes it.
        texts: at least one.
        exact: the file is not rounded and must agree.

    Raises:
        ParityError: the tokens differ, or a file that should agree does not.
        ModelError, MissingExtra: one of them cannot be loaded.
    """
    file = OnnxClassifier(folder)
    # As long as the file reads, and in the number format that the file was made from.
    model = Classifier(model_dir, dtype="float32", max_length=file.max_length)
    same = model.encode(texts) == file.encode(texts)
    p, q = (_log_probabilities(one.logits(texts), one.several) for one in (model, file))
    found = Parity(
        max_logprob_error=float(np.abs(p - q).max()),
        mean_kl=float((np.exp(p) * (p - q)).sum((-1, -2)).mean()),
        top1_agreement=float((p.argmax(1) == q.argmax(1)).all(-1).mean()),
        tokens_equal=same,
    )
    if not same or (exact and found.max_logprob_error > _MOST):
        raise ParityError(
            f"{folder} disagrees with {model_dir}",
            got=f"{found}",
            expected=f"the same tokens, and log-probabilities within {_MOST:g}",
            do="please report this, with the model's config.json",
        )
    return found


def _log_probabilities(logits: Logits, several: bool) -> NDArray[np.float64]:
    """float64 [texts, outcomes, decisions]: one decision among all classes, or one of yes and no for each."""
    wide = logits.astype(np.float64)
    if several:
        return -np.logaddexp(0, np.stack([-wide, wide], axis=1))
    return (wide - np.logaddexp.reduce(wide, axis=1, keepdims=True))[:, :, None]
