"""Training a classifier: hard labels where they are known, the teacher's class logits, its hidden states.

Hinton, Vinyals and Dean, arXiv 1503.02531; layers and hidden states from the teacher as in DistilBERT (Sanh et al., arXiv
1910.01108) and TinyBERT (Jiao et al., arXiv 1909.10351).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Student
from stillroom.contracts.recipe.schedule import Weight, peak, value_at
from stillroom.losses import (
    MatchWeights,
    classifier_loss,
    hidden_state_loss,
    map_layers,
    weighted_components,
)
from stillroom.models.classes import padded
from stillroom.models.classifier import head_settings, load_classifier
from stillroom.training.fitting import Training
from stillroom.training.planned import PlannedTrainer
from stillroom.training.pruning import choose, prune_student

UNKNOWN = -1


@dataclass(frozen=True)
class ClassRow:
    """One text: `ids` int [L]; its right `classes`, None where nobody knows; the teacher's `logits` float32 [classes]."""

    ids: NDArray[np.int32]
    classes: NDArray[np.int32] | None
    logits: NDArray[np.float32] | None = None


class ClassRows(Dataset[ClassRow]):
    """Texts in flat arrays, four bytes a token; what the teacher thought of them stays in its book.

    Args:
        rows: token ids of each, its right classes by their places or None, and its key in the book.
        signals: logits by key, or None where the teacher is not heard.
    """

    def __init__(
        self,
        rows: Iterable[tuple[Sequence[int], Sequence[int] | None, str]],
        signals: Any | None = None,
    ) -> None:
        ids, lengths, classes, counts = array("i"), array("q"), array("i"), array("q")
        self._keys: list[str] = []
        for row, right, key in rows:
            ids.extend(row)
            lengths.append(len(row))
            classes.extend(right or ())
            counts.append(UNKNOWN if right is None else len(right))
            self._keys.append(key)
        self.lengths = np.array(lengths, dtype=np.int64)
        self._counts = np.array(counts, dtype=np.int64)
        self._ids, self._classes = np.array(ids, np.int32), np.array(classes, np.int32)
        self._starts = np.concatenate([[0], self.lengths.cumsum()])
        self._firsts = np.concatenate([[0], self._counts.clip(min=0).cumsum()])
        self._signals = signals

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> ClassRow:
        classes = self._classes[self._firsts[index] : self._firsts[index + 1]]
        return ClassRow(
            self._ids[self._starts[index] : self._starts[index + 1]],
            None if self._counts[index] == UNKNOWN else classes,
            None if self._signals is None else self._signals[self._keys[index]],
        )


@dataclass(frozen=True)
class ClassObjective:
    """The weights of the loss's terms, the temperature of the soft one, and which hidden states are matched.

    Args:
        classes: how many there are.
        several: whether several may hold at once.
        hard: cross-entropy with the right class, on texts that have one.
        soft: the divergence from the teacher's classes, with the temperature squared.
        hidden: the teacher's hidden states, which wants it live.
        temperature: softens both distributions.
        layers: the student's layers and the teacher's, see `map_layers`.
        layer_weights: of the student's layers; 1 for those not named.
        states: "mse" or "cosine".
    """

    classes: int
    several: bool = False
    hard: Weight = 0.0
    soft: Weight = 1.0
    hidden: Weight = 0.0
    temperature: Weight = 1.0
    layers: str | Mapping[int, int] = "uniform"
    layer_weights: Mapping[int, float] = field(default_factory=dict)
    states: str = "mse"

    @property
    def listens(self) -> bool:
        """Whether the teacher counts."""
        return peak(self.soft) > 0 or self.matches

    @property
    def matches(self) -> bool:
        """Whether the teacher's inside is matched."""
        return peak(self.hidden) > 0

    def collate(self, rows: Sequence[ClassRow]) -> dict[str, Tensor]:
        """A batch of rows.

        Returns:
            `input_ids` and `attention_mask` int64 [B, L], padded on the right; `labels` int64 [B], or float32 [B, classes]
            where several may hold; `known` bool [B], where they count; `teacher` float32 [B, classes] where it is heard.
        """
        ids, mask = padded([row.ids.tolist() for row in rows])
        known = torch.tensor([row.classes is not None for row in rows])
        if self.several:
            labels = torch.zeros(len(rows), self.classes)
            for place, row in enumerate(rows):
                labels[place, torch.from_numpy(row.classes).long() if row.classes is not None else []] = 1.0
        else:
            labels = torch.tensor([0 if row.classes is None else int(row.classes[0]) for row in rows])
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": labels,
            "known": known,
        }
        logits = [row.logits for row in rows if row.logits is not None]
        return batch | ({"teacher": torch.from_numpy(np.stack(logits))} if logits else {})

    def values(self, logits: Tensor, batch: Mapping[str, Tensor], progress: float) -> Tensor:
        """The loss of each row by its classes, float32 [B]."""
        hard, soft = value_at(self.hard, progress), value_at(self.soft, progress)
        total = torch.zeros(len(logits), device=logits.device)
        if hard:
            each = classifier_loss(logits, logits, batch["labels"], alpha=0.0, multi_label=self.several)
            total = total + hard * each.masked_fill(~batch["known"], 0.0)
        if soft:
            temperature = value_at(self.temperature, progress)
            each = classifier_loss(
                logits, batch["teacher"], alpha=1.0, temperature=temperature, multi_label=self.several
            )
            total = total + soft * each
        return total

    def inside(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor, progress: float
    ) -> Tensor:
        """The loss of each row by its hidden states [B, L, width] of each layer: the mean over its tokens, float32 [B]."""
        try:
            pairs = map_layers(len(student) - 1, len(teacher) - 1, self.layers)
            real = mask.bool()
            found = {
                (own, "hidden"): hidden_state_loss(
                    student[own], teacher[other], kind=self.states, mask=real
                ).sum(1)
                / mask.sum(1)
                for own, other in pairs.items()
            }
            weights = MatchWeights(hidden=value_at(self.hidden, progress), layers=self.layer_weights)
            return weighted_components(found, weights)
        except ValueError as error:
            raise ModelError(
                "the inside of these classifiers cannot be matched so",
                got=str(error),
                do="cut the student from the teacher, change distil.match, or set distil.loss.hidden to 0",
            ) from None


class ClassifierTrainer(PlannedTrainer):
    """Trains a classifier; a live teacher is asked for its hidden states only."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        objective: ClassObjective,
        validation: Sequence[ClassRow] = (),
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective
        self.teacher = teacher.eval().requires_grad_(False) if teacher is not None else None
        super().__init__(
            model, args, collate=objective.collate, eval_dataset=list(validation) or None, **kwargs
        )
        if self.teacher is not None:
            self.teacher.to(args.device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's loss."""
        objective, texts = self.objective, {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**texts, output_hidden_states=objective.matches)
        values = objective.values(outputs.logits, inputs, self.done)
        if objective.matches:
            assert self.teacher is not None
            with torch.no_grad():
                above = self.teacher(**texts, output_hidden_states=True).hidden_states
            values = values + objective.inside(
                outputs.hidden_states, above, texts["attention_mask"], self.done
            )
        loss = values.sum() * self.share_of_step(num_items_in_batch, len(inputs["labels"]))
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: cross-entropy where the class is known, KL to the teacher at temperature 1, nats a text.

        Every rank reads all rows: they are few.
        """
        model = self.model
        was_training = model.training
        model.eval()
        sums = dict.fromkeys(("known", "hard", "rows", "soft"), 0.0)
        hard = ClassObjective(self.objective.classes, self.objective.several, hard=1.0, soft=0.0)
        soft = ClassObjective(self.objective.classes, self.objective.several, hard=0.0, soft=1.0)
        rows = sorted(self.eval_dataset or [], key=lambda row: len(row.ids))
        for start in range(0, len(rows), self.args.per_device_train_batch_size):
            piece = rows[start : start + self.args.per_device_train_batch_size]
            batch = self._prepare_inputs(self.objective.collate(piece))
            with self.accelerator.autocast():
                logits = model(batch["input_ids"], batch["attention_mask"]).logits
            sums["known"] += float(batch["known"].sum())
            sums["hard"] += float(hard.values(logits, batch, 1.0).sum())
            if "teacher" in batch:
                sums["rows"] += len(piece)
                sums["soft"] += float(soft.values(logits, batch, 1.0).sum())
        model.train(was_training)
        figures = {}
        if sums["known"]:
            figures["validation_loss"] = sums["hard"] / sums["known"]
        if sums["rows"]:
            figures["validation_kl"] = sums["soft"] / sums["rows"]
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


def fit_classifier(
    student: PreTrainedModel,
    rows: ClassRows,
    *,
    objective: ClassObjective,
    validation: Sequence[ClassRow] = (),
    teacher: PreTrainedModel | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Train a classifier in place, from its newest whole checkpoint if there is one.

    Args:
        student: the model; changed in place.
        rows: what it learns.
        objective: the loss.
        validation: rows whose loss is logged.
        teacher: live, for its hidden states.
        how: the arguments of `Training`.

    Returns:
        counts for the manifest, as `Training.run` gives them; errors as there.
    """
    training = Training(**how)
    plan = training.plan(rows.lengths)

    def build(arguments: TrainingArguments, callbacks: list[TrainerCallback]) -> PlannedTrainer:
        return ClassifierTrainer(
            student,
            arguments,
            objective=objective,
            validation=validation,
            teacher=teacher,
            rows=rows,
            plan=plan,
            callbacks=callbacks,
        )

    return training.run(build, plan, validate=bool(validation))


def build_classifier(
    spec: Student,
    *,
    model: Path | str | None,
    source: Path | str | None,
    labels: Sequence[str],
    several: bool,
    seed: int,
) -> PreTrainedModel:
    """The untrained student in float32, on the CPU.

    Args:
        spec: the recipe's student.
        model: the resolved `student.model`.
        source: the model that is cut or whose config is changed; its head is kept where its classes are these.
        labels: the classes.
        several: whether several may hold at once.
        seed: initialises a new head, or a fresh student.

    Raises:
        ModelError: a model cannot be read or cut.
    """
    set_seed(seed)
    trust = spec.trust_remote_code
    if model is not None:
        return load_classifier(model, labels=labels, several=several, trust_remote_code=trust)
    assert source is not None
    if spec.prune is not None:
        whole = load_classifier(source, labels=labels, several=several, trust_remote_code=trust)
        return prune_student(whole, choose(spec.prune, whole, tuple))
    assert spec.config is not None
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
    changed = {**config.to_dict(), **spec.config}
    kind = type(config).from_dict(changed)
    for name, value in head_settings(labels, several).items():
        if name != "num_labels":  # follows from the names
            setattr(kind, name, value)
    return AutoModelForSequenceClassification.from_config(kind, dtype=torch.float32)
