"""A classifier in ONNX, run by onnxruntime: no torch and no transformers, so that its memory is its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.errors import MissingExtra, ModelError
from stillroom.models.classes import Logits, TextClassifier

MODEL = "model.onnx"


class OnnxClassifier(TextClassifier):
    """A folder with model.onnx, config.json and tokenizer.json as a classifier.

    Args:
        folder: as the quantise stage writes it.
        batch_size: texts read at once.
        threads: of the processor; 0: all cores.

    Raises:
        ModelError: a file is missing or not usable.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, folder: Path | str, *, batch_size: int = 64, threads: int = 0) -> None:
        super().__init__(batch_size)
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra(
                "onnxruntime is not installed",
                do="pip install 'stillroom[onnx]', which runs classifiers in ONNX",
            ) from None
        from tokenizers import Tokenizer

        folder = Path(folder)
        self.name = str(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # tokenizers and onnxruntime raise plain exceptions of their own
            raise ModelError(
                f"the classifier {folder} cannot be loaded",
                got=str(error).partition("\n")[0][:300],
                expected=f"a folder with {MODEL}, config.json and tokenizer.json",
            ) from None
        self._tokenizer.no_padding()
        self.max_length = int(config.get("stillroom_max_length") or config["max_position_embeddings"])
        self._tokenizer.enable_truncation(self.max_length)
        self.labels = [config["id2label"][str(place)] for place in range(len(config["id2label"]))]
        self.several = config.get("problem_type") == "multi_label_classification"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [row.ids for row in self._tokenizer.encode_batch(list(texts))]

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """Logits of a padded batch."""
        return self._session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
