"""What training a student takes in memory, part by part, from shapes and settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.contracts.recipe import Distil, Lora, Recipe
from stillroom.planning.sums import Shape

_CHUNK, _STRIP = 512, 1 << 20
"""Positions whose logits the loss holds at a time, and elements of them that are worked on at a time."""
_BASE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8-bit": 1.0, "4-bit": 0.56}
"""Bytes of a frozen weight; `auto` may come to 4."""
_MOMENTS = {"8bit": 2.0, "adafactor": 0.1, "sgd": 0.0, "lion": 4.0, "adam": 8.0}
"""Bytes of the optimiser's state a trained parameter, by what its name holds; the first that fits."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of each part at its own peak, and of all at once."""

    weights: int
    optimiser: int
    gradients: int
    activations: int
    logits: int
    beside: int
    """Who is in memory beside the student: a live teacher, an average of its weights."""
    accumulates: bool = False

    @property
    def total(self) -> int:
        """The peak: before the backward pass activations are whole, after it gradients are."""
        held = self.gradients if self.accumulates else 0
        forward = self.activations + self.logits + held
        return self.weights + self.optimiser + self.beside + max(forward, self.gradients + self.logits)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part by its name."""
        names = ("weights", "optimiser", "gradients", "activations", "logits", "beside")
        return {name: getattr(self, name) for name in names}


def recipe_memory(
    recipe: Recipe, student: Shape, teacher: Shape | None, tokens: int, *, bfloat16: bool
) -> TrainingMemory:
    """The plan for a recipe's student, whose largest micro-batch has so many tokens."""
    return training_memory(
        student,
        recipe.distil,
        tokens,
        bfloat16=bfloat16,
        lora=recipe.student.lora,
        teacher=teacher,
        teacher_bytes=_BASE.get(recipe.teacher.dtype, 4.0),
    )


def training_memory(
    student: Shape,
    settings: Distil,
    tokens: int,
    *,
    bfloat16: bool,
    lora: Lora | None = None,
    teacher: Shape | None = None,
    teacher_bytes: float = 4.0,
) -> TrainingMemory:
    """The plan for one training.

    Args:
        student: its shape.
        settings: the recipe's `distil`.
        tokens: of the largest micro-batch, laid end to end.
        bfloat16: whether products are taken in it.
        lora: adapters, where only they are trained.
        teacher: a live teacher's shape; `teacher_bytes` of it a weight.
    """
    trained = _adapters(student, lora) if lora else student.parameters
    weights = (_BASE[lora.base] if lora else 4.0) * student.parameters + (4 * trained if lora else 0)
    moments = next((size for name, size in _MOMENTS.items() if name in settings.optimiser), 8.0)
    head = student.vocab * student.hidden
    wide = 2 if bfloat16 else 4
    # The head's gradient is summed while the loss is taken; where it is the embedding too, its second part comes on top.
    gradients = 4 * trained + (4 * head if student.tied and not lora else 0)
    activations = _activations(
        student, tokens, bfloat16=bfloat16, checkpointed=settings.gradient_checkpointing
    )
    if bfloat16:  # copies of the weights in halves, kept for the backward pass
        activations += 2 * student.layers * student.layer_parameters
    logits = min(_CHUNK, tokens) * student.vocab * wide + 5 * 4 * _STRIP
    logits += wide * head + (0 if lora else 4 * head)
    beside = 0.0
    if settings.teacher == "self":
        beside = 4 * student.parameters
    elif teacher and settings.teacher == "online":
        other = training_memory(teacher, Distil(), tokens, bfloat16=bfloat16)
        beside = other.total
    elif teacher and settings.teacher == "live":
        beside = teacher_bytes * teacher.parameters + min(_CHUNK, tokens) * teacher.vocab * wide
        beside += 2 * tokens * (6 * teacher.hidden + 3 * teacher.mlp)
    return TrainingMemory(
        int(weights),
        int(moments * trained),
        int(gradients),
        int(activations),
        int(logits),
        int(beside),
        accumulates=settings.micro_batch_size < settings.batch_size,
    )


def _activations(student: Shape, tokens: int, *, bfloat16: bool, checkpointed: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass (after Korthikanti et al. 2022, for a gated MLP).

    In bfloat16 both norms keep two copies of the hidden state in fp32, and each product its input in halves; attention
    keeps queries, keys, values and its output, the MLP four of its width. In fp32 the products share their input.
    """
    queries, keys = student.heads * student.head_size, student.kv_heads * student.head_size
    if bfloat16:
        layer = 26 * student.hidden + 2 * (3 * queries + 2 * keys) + 8 * student.mlp
    else:
        layer = 24 * student.hidden + 4 * (3 * queries + 2 * keys) + 16 * student.mlp
    whole = layer * tokens
    ends = 16 * student.hidden * tokens
    if checkpointed:
        return ends + 4 * student.hidden * tokens * student.layers + whole
    return ends + whole * student.layers


def _adapters(student: Shape, lora: Lora) -> int:
    """Parameters of the adapters on the layers' own products; others, such as a head's, are not known here."""
    queries, keys = student.heads * student.head_size, student.kv_heads * student.head_size
    sides: dict[str, Any] = {
        "q_proj": student.hidden + queries,
        "k_proj": student.hidden + keys,
        "v_proj": student.hidden + keys,
        "o_proj": queries + student.hidden,
        "gate_proj": student.hidden + student.mlp,
        "up_proj": student.hidden + student.mlp,
        "down_proj": student.hidden + student.mlp,
    }
    return lora.rank * student.layers * sum(sides.get(name, 0) for name in lora.targets)
