"""Making the student: a pretrained folder, layers of a larger model, or a fresh one; with adapters if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.utils import logging

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Student
from stillroom.models.hardware import bfloat16_is_quick
from stillroom.models.quantisation import quantisation
from stillroom.training.pruning import choose, prune_student


def build_student(
    spec: Student,
    *,
    model: Path | str | None,
    source: Path | str | None,
    seed: int,
    texts: Callable[[], Iterable[Sequence[int]]] = tuple,
) -> PreTrainedModel:
    """The untrained student in float32, on the CPU; with adapters in mind, in the number format that they are trained on.

    Args:
        spec: the recipe's student.
        model: the resolved `student.model`.
        source: the resolved model that is cut or whose config is changed.
        seed: initialises a fresh student.
        texts: token ids of lessons, read where a student is cut by what the model does with them.

    Raises:
        ModelError: a model cannot be read or cut.
    """
    remote = {"trust_remote_code": spec.trust_remote_code}
    base = spec.lora.base if spec.lora else "float32"
    if model is not None:
        return _load(model, remote, base)
    return _made(spec, source, seed, texts, remote).to(getattr(torch, base))


def _made(
    spec: Student,
    source: Path | str | None,
    seed: int,
    texts: Callable[[], Iterable[Sequence[int]]],
    remote: dict[str, Any],
) -> PreTrainedModel:
    """A student that is cut out of the source, or shaped like it."""
    assert source is not None
    if spec.prune is not None:
        whole = _load(source, remote)
        return prune_student(whole, choose(spec.prune, whole, texts))
    assert spec.config is not None
    config = AutoConfig.from_pretrained(source, **remote)
    unknown = [key for key in spec.config if not hasattr(config, key)]
    if unknown:
        raise ModelError(
            f"student.config has keys that {type(config).__name__} does not know",
            got=", ".join(unknown),
            expected="keys such as num_hidden_layers, hidden_size, intermediate_size, num_attention_heads",
        )
    changed = {**config.to_dict(), **spec.config}
    if (
        "head_dim" in changed
        and "head_dim" not in spec.config
        and {"hidden_size", "num_attention_heads"} & {*spec.config}
    ):
        changed["head_dim"] = changed["hidden_size"] // changed["num_attention_heads"]
    if changed.get("layer_types") and "layer_types" not in spec.config:
        changed["layer_types"] = changed["layer_types"][: changed["num_hidden_layers"]]
    set_seed(seed)
    return AutoModelForCausalLM.from_config(type(config).from_dict(changed), dtype=torch.float32)


def _load(reference: Path | str, remote: dict[str, Any], base: str = "float32") -> PreTrainedModel:
    logging.disable_progress_bar()  # a stage has a display of its own
    compute = torch.bfloat16 if bfloat16_is_quick() else torch.float32
    rounded = quantisation(
        base, compute, setting="student.lora.base", instead="set student.lora.base to bfloat16"
    )
    number = compute if rounded else getattr(torch, base)
    try:
        return AutoModelForCausalLM.from_pretrained(
            reference, dtype=number, use_safetensors=True, **rounded, **remote
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model {reference} cannot be loaded",
            got=str(error).partition("\n")[0][:300],
            expected="a Hugging Face folder or hub id of a causal language model with safetensors",
        ) from None


def save_student(student: PreTrainedModel, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a plain Hugging Face folder: safetensors, tokenizer and chat template."""
    student.config.use_cache = True
    # The trainer's weights are float32; the file has the source's own format.
    student.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
