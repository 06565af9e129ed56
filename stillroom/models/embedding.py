"""Texts to vectors, by an encoder's mean over its last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from stillroom.contracts.errors import ModelError


class Embedder:
    """An encoder, or any other transformers model, as a function of texts; vectors as in Sentence-BERT.

    The mean over the tokens' last hidden states (Reimers and Gurevych, Sentence-BERT, 2019), which is what most sentence
    encoders are trained for; one that was trained to pool otherwise gives usable vectors, not its best.

    Args:
        found: a Hugging Face folder or hub id.
        batch_size: most texts at once.
        max_length: tokens of a text that are read.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, found: Path | str, *, batch_size: int = 32, max_length: int = 256) -> None:
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(found)
            self._model = AutoModel.from_pretrained(found).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"the embedder {found} cannot be loaded",
                got=str(error).splitlines()[0][:200],
                expected="a Hugging Face folder or hub id of an encoder, with its tokenizer",
            ) from None
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        self._batch_size, self._max_length = batch_size, max_length

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 `[texts, width]`, in the order of the texts."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors: list[NDArray[np.float32] | None] = [None] * len(texts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            batch = self._tokenizer(
                [texts[place] for place in chosen],
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            states = self._model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            for place, mean in zip(chosen, means.numpy(), strict=True):
                vectors[place] = mean
        return np.stack([vector for vector in vectors if vector is not None])
