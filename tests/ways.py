"""Every way to distil as a short training of tiny models: the same call whichever way it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_training_packing import SHAPE, some_rows
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Lora, Past, Replay, Rounds
from stillroom.training.adapters import add_lora
from stillroom.training.classifying import ClassObjective, ClassRows, fit_classifier
from stillroom.training.fitting import fit
from stillroom.training.matching import Matching
from stillroom.training.objective import Objective
from stillroom.training.rounds import Calendar, OwnWriting

STEPS = 10
LENGTHS = (5, 9, 9, 14, 23, 4, 12, 7, 8, 16, 11)  # 11 rows in batches of 5: a second rank has a short share
SETTINGS = {
    "steps": STEPS,
    "batch_size": 5,
    "micro_batch_size": 2,
    "learning_rate": 3e-3,
    "validate_every": 2,
    "checkpoint_every": 3,
    "precision": "float32",
}


class Listed:
    """Rows from a list."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.lengths = rows, np.array([len(row.ids) for row in rows])

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def llama(seed: int = 3, hidden: int = SHAPE["hidden_size"]) -> LlamaForCausalLM:
    """A student or a teacher."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "hidden_size": hidden}, tie_word_embeddings=True))


def adapted() -> Any:
    """A student with adapters."""
    return add_lora(llama(), Lora(rank=4, dropout=0.0), seed=0)


def classifier(seed: int = 3) -> BertForSequenceClassification:
    """An encoder that chooses among four."""
    torch.manual_seed(seed)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4,
        **quiet,
    )  # fmt: skip
    return BertForSequenceClassification(config)


@dataclass(frozen=True)
class Way:
    """What a way asks of `fit` beside the settings of all."""

    student: Callable[[], Any] = llama
    settings: dict[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=lambda: Objective(hard=0.4, soft=0.6))
    more: Callable[[], dict[str, Any]] = dict

    def train(self, folder: Path, until: int | None = None) -> Any:
        """The student after its training, or after so many steps of it."""
        student, rows = self.student(), some_rows(lengths=LENGTHS)
        settings = Distil(**SETTINGS, **self.settings)
        fit(
            student,
            Listed(rows),
            objective=self.objective,
            validation=rows[:5],
            **how(folder, settings, until),
            **self.more(),
        )
        return student


@dataclass(frozen=True)
class Choosing:
    """A classifier, which has a loss of its own; of some texts the class is not known."""

    def train(self, folder: Path, until: int | None = None) -> Any:
        """As `Way.train`."""
        rng, model = np.random.default_rng(0), classifier()
        keys = [f"{place:032x}" for place in range(len(LENGTHS))]
        rows = [
            (rng.integers(1, 50, length).tolist(), None if length == 9 else [length % 4], key)
            for length, key in zip(LENGTHS, keys, strict=True)
        ]
        logits = rng.normal(size=(len(keys), 4)).astype(np.float32)
        source = ClassRows(rows, dict(zip(keys, logits, strict=True)))
        fit_classifier(
            model,
            source,
            validation=[source[place] for place in range(5)],
            objective=ClassObjective(4, hard=0.5, soft=0.5, hidden=0.3, temperature=2.0),
            teacher=classifier(seed=9),
            **how(folder, Distil(**SETTINGS), until),
        )
        return model

    @staticmethod
    def student() -> Any:
        """The student before."""
        return classifier()


def how(folder: Path, settings: Distil, until: int | None) -> dict[str, Any]:
    """The arguments of any training."""
    return {
        "settings": settings,
        "steps": STEPS,
        "seed": 0,
        "checkpoints": folder / "checkpoints",
        "metrics": folder / "metrics.jsonl",
        "label": "training",
        "progress": Progress(),
        "until": until,
    }


def own_writing() -> dict[str, Any]:
    """Of rounds, the last rows are what the student wrote."""
    return {"draws": [OwnWriting(Calendar(Rounds(count=1, start=0.34, share=0.6), STEPS), 7, [4])]}


INSIDE = Matching(weights={"hidden": 0.5, "attention": 0.5})
SUM = Objective(hard=1.0, soft=1.0)

WAYS: dict[str, Way | Choosing] = {
    "book": Way(),
    "words": Way(objective=Objective(hard=1.0, soft=0.0)),
    "lora": Way(student=adapted),
    "live": Way(
        objective=Objective(divergence="jensen_shannon", temperature={0: 2.0, 1.0: 1.0}),
        more=lambda: {"teacher": llama(9)},
    ),
    "inside": Way(objective=Objective(matching=INSIDE), more=lambda: {"teacher": llama(9, hidden=48)}),
    "online": Way(objective=Objective(hard=1.0, soft=1.0, mutual=True), more=lambda: {"teacher": llama(9)}),
    "self": Way(objective=SUM, more=lambda: {"past": Past(decay=0.5, every=2)}),
    "rounds": Way(more=own_writing),
    "curriculum": Way(settings={"curriculum": {"by": "length", "start": 0.4}}),
    "replay": Way(
        settings={"replay": Replay(file="general.jsonl", share=0.4)},
        more=lambda: {"replay": Listed(some_rows(seed=5, lengths=(6, 8, 10, 12)))},
    ),
    "classifier": Choosing(),
}


def figures(folder: Path) -> list[dict[str, float]]:
    """What a training wrote down of itself, without the learning rate."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "grad_norm", "validation_loss", "validation_kl")
    return [{key: line[key] for key in kept if key in line} for line in lines]
