"""A transformers encoder with a head over classes, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from stillroom.contracts.errors import ModelError
from stillroom.models.classes import Logits, TextClassifier
from stillroom.models.hardware import bfloat16_is_quick

SEVERAL = "multi_label_classification"


class Classifier(TextClassifier):
    """A Hugging Face folder or hub id as a classifier.

    Args:
        reference: the folder or hub id.
        dtype: "auto" (bfloat16 where the hardware is quick at it, else float32), "float32", "bfloat16", "float16".
        batch_size: texts read at once.
        max_length: tokens of a text that are read, if the model can read as many.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(
        self,
        reference: Path | str,
        *,
        dtype: str = "auto",
        batch_size: int = 64,
        max_length: int = 512,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(batch_size)
        self.name = str(reference)
        model = load_classifier(reference, trust_remote_code=trust_remote_code)
        number = ("bfloat16" if bfloat16_is_quick() else "float32") if dtype == "auto" else dtype
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = model.to(self._device, getattr(torch, number)).eval()
        self._encoder = TextEncoder(reference, model.config, max_length, trust_remote_code)
        self.labels, self.several = labels_of(model.config), model.config.problem_type == SEVERAL
        self.parameters = sum(weight.numel() for weight in model.parameters())

    @property
    def mark(self) -> str:
        """What stands for a hidden word."""
        return self._encoder.mark

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self._encoder(texts)

    @torch.inference_mode()
    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """Logits of a padded batch."""
        sent = (torch.from_numpy(part).to(self._device) for part in (ids, mask))
        return self._model(*sent).logits.float().cpu().numpy()


class TextEncoder:
    """Texts to token ids, special tokens included, cut to what is read.

    Raises:
        ModelError: there is no tokenizer.
    """

    def __init__(
        self, reference: Path | str, config: Any, max_length: int, trust_remote_code: bool = False
    ) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                reference, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{reference} has no tokenizer that can be loaded", got=_first_line(error)
            ) from None
        places = getattr(config, "max_position_embeddings", None)
        # RoBERTa's places start after the padding token's.
        spare = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
        self.max_length = min(max_length, places - spare) if places else max_length

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]

    @property
    def mark(self) -> str:
        """What stands for a hidden word; nothing where the tokenizer has no such token."""
        return self.tokenizer.mask_token or ""


def load_classifier(
    reference: Path | str,
    *,
    labels: Sequence[str] | None = None,
    several: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """An encoder with a head, float32, on the CPU.

    Args:
        reference: a Hugging Face folder or hub id.
        labels: the classes of a new head; None: the head that it has.
        several: whether several classes may hold at once, for a new head.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: it cannot be loaded, or has no head and no classes are given.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    new = {} if labels is None else {**head_settings(labels, several), "ignore_mismatched_sizes": True}
    try:
        model, told = AutoModelForSequenceClassification.from_pretrained(
            reference,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **new,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the classifier {reference} cannot be loaded",
            got=_first_line(error),
            expected="a Hugging Face folder or hub id of an encoder with safetensors",
        ) from None
    if labels is None and any(name.startswith(("classifier", "score")) for name in told["missing_keys"]):
        raise ModelError(
            f"{reference} does not know any classes",
            got="an encoder without a head",
            expected="a model that was trained to classify",
            do="have it learn them from labelled questions first: classify: {prepare: {}}",
        )
    return model


def head_settings(labels: Sequence[str], several: bool) -> dict[str, Any]:
    """What a config says of a head over these classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
        "problem_type": SEVERAL if several else "single_label_classification",
    }


def labels_of(config: Any) -> list[str]:
    """The names of a classifier's classes, in the order of its logits."""
    return [str(config.id2label[place]) for place in range(config.num_labels)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
