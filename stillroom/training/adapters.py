"""Low-rank adapters on a student, and their way back into its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel, set_seed

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Lora


def add_lora(student: PreTrainedModel, spec: Lora, seed: int) -> Any:
    """The student with trainable low-rank adapters on the named layers; its own weights are frozen.

    LoRA: Hu et al., arXiv 2106.09685; DoRA: Liu et al., arXiv 2402.09353.

    Raises:
        ModelError: no layer has such a name.
    """
    set_seed(seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.targets,
        use_dora=spec.dora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(student, config)
    except ValueError as error:
        raise ModelError(
            "the adapters fit nowhere",
            got=f"student.lora.targets: {', '.join(spec.targets)}",
            expected="names of the student's linear layers",
            do=str(error).partition("\n")[0][:200],
        ) from None


def merged(student: Any, whole: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A trained student as one plain model.

    Args:
        student: with or without adapters.
        whole: gives the weights that the adapters were trained on as they were before they were rounded; asked where
            the student's own are not float32, since adding to rounded weights and rounding again would lose twice.
    """
    if not hasattr(student, "merge_and_unload"):
        return student
    if all(weight.dtype == torch.float32 for weight in student.parameters()):
        return student.merge_and_unload()
    state = get_peft_model_state_dict(student)
    fresh = get_peft_model(whole(), student.peft_config["default"])
    set_peft_model_state_dict(fresh, state)
    return fresh.merge_and_unload()
