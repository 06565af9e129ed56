"""What training a student takes in memory, part by part, from shapes and settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.contracts.recipe import Distil, Lora, Recipe
from stillroom.planning.sums import Shape

_CHUNK, _STRIP = 512, 1 << 20
"""Positions whose logits the loss holds at a time, and elements of them that are worked on at a time."""
_BASE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8-bit": 1.0, "4-bit": 0.56}
"""Bytes of a frozen weight; `auto` may come to 4."""
_MOMENTS = {"8bit": 2.0, "adafactor": 0.1, "sgd": 0.0, "lion": 4.0, "adam": 8.0}
"""Bytes of the optimiser's state a trained parameter, by what its name holds; the first that fits."""
_CODE = 12 << 20
"""Pages of the libraries' code that are read at the first product; measured, whatever the model."""


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
    layer: int = 0
    """Of the activations, those of one layer, which are there while gradients are whole but for its own."""
    heap: int = 0
    """Holes that the C library cannot fill again, and the libraries' code; nothing on a GPU."""
    accumulates: bool = False

    @property
    def total(self) -> int:
        """The peak: before the backward pass activations are whole, after it gradients are."""
        held = self.gradients if self.accumulates else 0
        forward = self.activations + self.logits + held
        backward = self.gradients + max(self.logits, self.layer)
        return self.weights + self.optimiser + self.beside + self.heap + max(forward, backward)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part by its name."""
        names = ("weights", "optimiser", "gradients", "activations", "logits", "beside", "heap")
        return {name: getattr(self, name) for name in names}


def recipe_memory(
    recipe: Recipe, student: Shape, teacher: Shape | None, tokens: int, *, bfloat16: bool, gpu: bool
) -> TrainingMemory:
    """The plan for a recipe's student, whose largest micro-batch has so many tokens."""
    return training_memory(
        student,
        recipe.distil,
        tokens,
        bfloat16=bfloat16,
        lora=recipe.student.lora,
        teacher=teacher,
        teacher_bytes=_BASE.get(recipe.teacher.dtype, 2.0 if bfloat16 else 4.0),
        gpu=gpu,
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
    gpu: bool = False,
) -> TrainingMemory:
    """The plan for one training.

    Args:
        student: its shape.
        settings: the recipe's `distil`.
        tokens: of the largest micro-batch, laid end to end.
        bfloat16: whether products are taken in it.
        lora: adapters, where only they are trained.
        teacher: a live teacher's shape; `teacher_bytes` of it a weight.
        gpu: whether it trains on one, whose blocks PyTorch keeps and fills again itself.
    """
    trained = _adapters(student, lora) if lora else student.parameters
    weights = (_BASE[lora.base] if lora else 4.0) * student.parameters + (4 * trained if lora else 0)
    moments = next((size for name, size in _MOMENTS.items() if name in settings.optimiser), 8.0)
    head = student.vocab * student.hidden
    wide = 2 if bfloat16 else 4
    # The head's gradient is summed while the loss is taken; where it is the embedding too, its second part comes on top.
    gradients = 4 * trained + (4 * head if student.tied and not lora else 0)
    layer = _layer_bytes(student, lora, bfloat16=bfloat16) * tokens
    ends = 16 * student.hidden * tokens
    if settings.gradient_checkpointing:
        activations = ends + 4 * student.hidden * tokens * student.layers + layer
    else:
        activations = ends + layer * student.layers
    copied = bfloat16 and not (lora and _BASE[lora.base] <= 2)
    if copied:  # copies of the weights in halves, kept for the backward pass
        activations += 2 * student.layers * student.layer_parameters
    logits = min(_CHUNK, tokens) * student.vocab * wide + 5 * 4 * _STRIP
    logits += wide * head + (0 if lora else 4 * head)
    beside = 0.0
    if settings.teacher == "self":
        beside = 4 * student.parameters
    elif teacher and settings.teacher == "online":
        beside = training_memory(teacher, Distil(), tokens, bfloat16=bfloat16, gpu=gpu).total
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
        layer=layer,
        heap=0 if gpu else _CODE + student.layers * _holes(student, lora, bfloat16=bfloat16) * tokens,
        accumulates=settings.micro_batch_size < settings.batch_size,
    )


def _layer_bytes(student: Shape, lora: Lora | None, *, bfloat16: bool) -> int:
    """Bytes a token that a layer keeps for the backward pass (after Korthikanti et al. 2022, for a gated MLP).

    In bfloat16 both norms keep two copies of the hidden state in fp32, and each product its input in halves; attention
    keeps queries, keys, values and its output, the MLP four of its width. In fp32 the products share their input. Beside
    adapters a frozen product keeps no input, and each adapter a copy of its own.
    """
    queries, keys = student.heads * student.head_size, student.kv_heads * student.head_size
    narrow = 2 if bfloat16 else 4
    if lora:
        wide = narrow * (4 * queries + 2 * keys) + 3 * narrow * student.mlp
        return wide + (30 if bfloat16 else 32) * student.hidden
    return (
        narrow * (3 * queries + 2 * keys)
        + 4 * narrow * student.mlp
        + (26 if bfloat16 else 24) * student.hidden
    )


def _holes(student: Shape, lora: Lora | None, *, bfloat16: bool) -> int:
    """Bytes a token and layer that are free and yet of no use to the C library.

    PyTorch asks for blocks at multiples of 64 bytes. glibc looks for such a block where 96 bytes more are free, so that what
    one leaves behind is too small for the next of its size: what a layer computes and lets go of, between what it keeps,
    leaves holes. Two that lie side by side take one block again, hence half of them. (With `malloc` in the place of
    `posix_memalign` they are gone.)

    Of the hidden state's size are, in each norm, the squares and the product with its weight, and the outputs of attention
    and MLP; rotary embeddings go through queries and keys four and a half times; each adapter adds its product, scaled,
    to the frozen one's.
    """
    queries, keys = student.heads * student.head_size, student.kv_heads * student.head_size
    narrow = 2 if bfloat16 else 4
    freed = (20 if bfloat16 else 16) * student.hidden + int(4.5 * narrow) * (queries + keys)
    if lora:
        freed += (
            3 * narrow * sum(out for name, (_, out) in _products(student).items() if name in lora.targets)
        )
    return freed // 2


def _products(student: Shape) -> dict[str, tuple[int, int]]:
    """Columns in and out of a layer's products, by their names."""
    queries, keys = student.heads * student.head_size, student.kv_heads * student.head_size
    return {
        "q_proj": (student.hidden, queries),
        "k_proj": (student.hidden, keys),
        "v_proj": (student.hidden, keys),
        "o_proj": (queries, student.hidden),
        "gate_proj": (student.hidden, student.mlp),
        "up_proj": (student.hidden, student.mlp),
        "down_proj": (student.mlp, student.hidden),
    }


def _adapters(student: Shape, lora: Lora) -> int:
    """Parameters of the adapters on the layers' own products; others, such as a head's, are not known here."""
    sides = _products(student)
    return lora.rank * student.layers * sum(sum(sides.get(name, (0, 0))) for name in lora.targets)
