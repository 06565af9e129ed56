"""From a Hugging Face classifier to a folder with model.onnx, which runs without torch."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts.errors import MissingExtra, ModelError
from stillroom.contracts.files import read_json, storage, write_json
from stillroom.models.classifier import TextEncoder, load_classifier
from stillroom.models.onnx_classifier import MODEL


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        bytes: of model.onnx.
        parameters: weights of the model.
    """

    bytes: int
    parameters: int


class _Logits(nn.Module):
    """Texts to logits and nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export(model_dir: Path | str, out: Path | str, *, max_length: int = 512) -> Exported:
    """Write a folder with model.onnx in float32, config.json and tokenizer.json.

    Args:
        model_dir: the classifier, a Hugging Face folder.
        out: the folder to write.
        max_length: tokens of a text that are read, if the model can read as many.

    Raises:
        MissingExtra: the libraries are not installed.
        ModelError: the model cannot be loaded or converted.
        StorageFault: the disk is full.
    """
    _quantiser()  # before the work
    out = Path(out)
    model = load_classifier(model_dir).eval()
    encoder = TextEncoder(model_dir, model.config, max_length)
    out.mkdir(parents=True, exist_ok=True)
    encoder.tokenizer.save_pretrained(out)
    count = sum(weight.numel() for weight in model.parameters())
    told = {"stillroom_max_length": encoder.max_length, "stillroom_parameters": count}
    write_json(out / "config.json", {**model.config.to_dict(), **told})
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        written = Path(scratch) / MODEL
        _convert(model, written)
        written.replace(out / MODEL)
    return Exported((out / MODEL).stat().st_size, count)


def round_weights(whole: Path | str, out: Path | str) -> Exported:
    """Write a folder like the one that `export` wrote, with weights of eight bits.

    The weights of matrices and embeddings are rounded, a scale for each output of a matrix; what comes in is rounded as it
    comes (dynamic quantisation).

    Args:
        whole: the folder of `export`.
        out: the folder to write.

    Raises:
        MissingExtra: the libraries are not installed.
        StorageFault: the disk is full.
    """
    quantize, kind = _quantiser()
    whole, out = Path(whole), Path(out)
    with storage(out):
        shutil.copytree(whole, out, dirs_exist_ok=True, ignore=lambda *_: [MODEL])
        with tempfile.TemporaryDirectory(dir=out) as scratch, _quiet():
            quantize(whole / MODEL, Path(scratch) / MODEL, per_channel=True, weight_type=kind)
            (Path(scratch) / MODEL).replace(out / MODEL)
    count = read_json(out / "config.json")["stillroom_parameters"]
    return Exported((out / MODEL).stat().st_size, count)


def _quantiser() -> tuple[Any, Any]:
    """onnxruntime's quantiser and its name for eight bits, where all that writes ONNX is installed."""
    try:
        import onnxscript  # noqa: F401  # torch's exporter writes through it
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise MissingExtra(
            "the libraries that write ONNX are not installed", do="pip install 'stillroom[onnx]'"
        ) from None
    return quantize_dynamic, QuantType.QInt8


def _convert(model: Any, path: Path) -> None:
    """Trace the model over a made-up batch whose two sizes are left open."""
    ids = torch.ones(2, 8, dtype=torch.int64)
    rows, length = (
        torch.export.Dim("rows"),
        torch.export.Dim("length", max=model.config.max_position_embeddings),
    )
    try:
        with _quiet():
            torch.onnx.export(
                _Logits(model),
                (ids, torch.ones_like(ids)),
                str(path),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes=({0: rows, 1: length}, {0: rows, 1: length}),
                dynamo=True,
                external_data=False,
            )
    except Exception as error:  # the exporter raises what its many parts raise
        raise ModelError(
            f"{type(model).__name__} cannot be written as ONNX",
            got=str(error).partition("\n")[0][:300],
            expected="an encoder that torch can export, such as BERT, DistilBERT or RoBERTa",
            do="leave int8 and F32 out of quantise: [] hands over the Hugging Face folder",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells its makers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
