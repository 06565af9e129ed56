"""Preferences into a distilled student: direct preference optimisation through TRL, the student itself as reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback

from stillroom.contracts.errors import MissingExtra
from stillroom.contracts.files import storage
from stillroom.contracts.launchers import place
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe.align import Align
from stillroom.models.hardware import bfloat16_is_quick
from stillroom.ranks import once
from stillroom.training.callbacks import (
    MetricsFile,
    ProgressCallback,
    WholeCheckpoints,
    last_whole_checkpoint,
)

_REPORTED = {
    "eval_loss": "held-out loss",
    "eval_rewards/accuracies": "held-out pairs won",
    "eval_rewards/margins": "held-out margin",
}
"""What TRL logs of pairs that were not trained on, and what it is called here."""


def align(
    student: Any,
    tokenizer: Any,
    pairs: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    *,
    settings: Align,
    seed: int,
    checkpoints: Path,
    metrics: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train the student in place, from its newest whole checkpoint if there is one.

    Args:
        student: the model, with adapters where the reference is the model without them.
        tokenizer: its tokenizer, with a chat template.
        pairs: {prompt, chosen, rejected}, lists of messages.
        held_out: likewise, pairs that only tell how many are won.
        settings: the recipe's `align`.
        seed: decides the order of pairs.
        checkpoints: where checkpoints are kept while it trains.
        metrics: the JSONL file of losses.
        progress: where to report to.

    Returns:
        counts for the manifest: steps, pairs, what was won of the pairs held out.

    Raises:
        MissingExtra: TRL or datasets is not installed.
        StorageFault: the disk is full.
    """
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise MissingExtra(
            "align needs TRL", got=str(error).partition("\n")[0], do="pip install stillroom[align]"
        ) from None
    steps = max(1, round(settings.epochs * len(pairs) / settings.batch_size))
    ranks = place()[1]
    micro = min(settings.micro_batch_size, max(1, settings.batch_size // ranks))
    with storage(checkpoints):
        checkpoints.mkdir(parents=True, exist_ok=True)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        found = once(lambda: last_whole_checkpoint(checkpoints))
        transformers.utils.logging.set_verbosity_error()
        arguments = DPOConfig(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=micro,
            gradient_accumulation_steps=-(-settings.batch_size // (micro * ranks)),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(0.1 * steps),
            beta=settings.beta,
            loss_type=[settings.loss],
            max_length=None,  # too long ones were left out, whole
            gradient_checkpointing=False,
            bf16=bfloat16_is_quick(),
            use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            logging_steps=10,
            save_strategy="steps",
            save_steps=50,
            save_total_limit=2,
            eval_strategy="steps" if held_out else "no",
            eval_steps=max(1, steps),
            report_to="none",
            seed=seed,
            data_seed=seed,
            disable_tqdm=True,
        )
        with progress.meter("aligning", steps, "steps", done=found[1] if found else 0) as meter:
            trainer = DPOTrainer(
                student,
                None if hasattr(student, "get_base_model") else copy.deepcopy(student),
                arguments,
                train_dataset=Dataset.from_list(list(pairs)),
                eval_dataset=Dataset.from_list(list(held_out)) if held_out else None,
                processing_class=tokenizer,
                callbacks=[MetricsFile(metrics), WholeCheckpoints(), ProgressCallback(meter)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    last: dict[str, Any] = {}
    for line in trainer.state.log_history:
        last |= line
    figures = {name: round(last[key], 4) for key, name in _REPORTED.items() if key in last}
    return {"steps": steps, "pairs": len(pairs), "held-out pairs": len(held_out), **figures}
