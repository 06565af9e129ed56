"""What a run takes of memory and disk, where it fits, and the setting that makes it fit where it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stillroom.contracts.memory import CARD_RESERVE
from stillroom.contracts.recipe import Lora, Recipe
from stillroom.contracts.runfolder import Run
from stillroom.planning.capturing import ANSWER_TOKENS, QUESTION_TOKENS
from stillroom.planning.files import file_bytes
from stillroom.planning.machine import gpu_bytes, memory_bytes, quick_at_bfloat16, size
from stillroom.planning.memory import TrainingMemory, recipe_memory
from stillroom.planning.pace import Expected
from stillroom.planning.sums import Shape

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Room:
    """Where training happens: bytes that it may take, and whether that is a card's memory."""

    bytes: int
    gpu: bool
    name: str


def room_of(vram: int | None) -> Room:
    """A card of so many bytes; None: this machine's largest card, or its memory where it has none."""
    card = vram if vram is not None else gpu_bytes()
    if card:
        return Room(card - CARD_RESERVE, True, f"a card of {size(card)}")
    return Room(memory_bytes(), False, f"this machine's {size(memory_bytes())}")


def memory_lines(
    recipe: Recipe,
    student: Shape,
    teacher: Shape | None,
    length: float,
    vram: int | None,
    earlier: Callable[[int], Expected | None],
) -> Iterator[str]:
    """What training takes, part by part, whether it fits, and what would make it fit.

    Args:
        recipe: the run's.
        student, teacher: their shapes.
        length: tokens of a lesson.
        vram: bytes of a card to plan for, instead of this machine.
        earlier: what a training of so many planned bytes takes, as runs on this machine have it; None: there is none.
    """
    room = room_of(vram)
    need = training_need(recipe, student, teacher, length, room)
    rows = min(recipe.distil.micro_batch_size, recipe.distil.batch_size)
    yield f"training       about {size(need.total)} at {rows} lessons of {length:,.0f} tokens at once"
    parts = [f"{name} {size(part)}" for name, part in need.parts.items() if part]
    yield f"  of which     {', '.join(parts)}; not all at once"
    total, factor = need.total, 1.0
    known = earlier(total) if vram is None else None
    if known is None and not room.gpu:
        yield "  may be more  on a processor, where every step has other lengths: 4.3 times the plan was measured once"
    if known:
        runs = "one run" if known.runs == 1 else f"{known.runs} runs"
        yield f"  as measured  about {size(known.value)}, by what {runs} on this machine took beside their plans"
        total, factor = int(known.value), known.value / total
    if total <= room.bytes:
        yield f"  fits         {room.name}"
        return
    yield f"  warning: more than {room.name}"
    found = _fitting(recipe, student, teacher, length, room, factor)
    if found is None:
        yield "    no setting of training makes it fit: take a smaller student.model, or cut one with student.prune"
    else:
        change, total = found
        yield f"    set {change}: about {size(total)}"


def training_need(
    recipe: Recipe, student: Shape, teacher: Shape | None, length: float, room: Room
) -> TrainingMemory:
    """What training the recipe's student takes with lessons of so many tokens."""
    rows = min(recipe.distil.micro_batch_size, recipe.distil.batch_size)
    precision = recipe.distil.precision
    halves = precision == "bfloat16" or (precision == "auto" and (room.gpu or quick_at_bfloat16()))
    return recipe_memory(recipe, student, teacher, int(rows * length), bfloat16=halves, gpu=room.gpu)


def _fitting(
    recipe: Recipe, student: Shape, teacher: Shape | None, length: float, room: Room, factor: float
) -> tuple[str, int] | None:
    """The first change of settings with which it fits, the cheapest first: fewer rows, checkpoints, adapters."""
    rows = min(recipe.distil.micro_batch_size, recipe.distil.batch_size)
    fewer = [rows >> half for half in range(1, rows.bit_length())]
    learned = {"student": recipe.student.model_copy(update={"lora": Lora()})}
    for adapters in ({}, learned) if recipe.student.lora is None else ({},):
        for again in (False, True):
            for count in [rows, *fewer]:
                settings = {"micro_batch_size": count}
                words = [f"distil.micro_batch_size={count}"] if count != rows else []
                if again:
                    settings["gradient_checkpointing"] = True
                    words.append("distil.gradient_checkpointing=true")
                if adapters:
                    words.append(f"student.lora={{rank: {Lora().rank}}}")
                changed = recipe.model_copy(
                    update={**adapters, "distil": recipe.distil.model_copy(update=settings)}
                )
                total = int(factor * training_need(changed, student, teacher, length, room).total)
                if total <= room.bytes:
                    return " and ".join(words), total
    return None


def file_lines(recipe: Recipe, student: Shape | None, vram: int | None) -> Iterator[str]:
    """The model files, how large they become, and what they take where they answer."""
    kinds = list(dict.fromkeys(["F16", *recipe.files]))
    if student is None:
        yield f"files          {', '.join(kinds)}"
        return
    context, sizes = recipe.export.context, {kind: _file(student, kind) for kind in kinds}
    yield f"files          {', '.join(f'{kind} about {size(total)}' for kind, total in sizes.items())}"
    cache = student.cache_bytes(context)
    yield f"  answering    takes the file and {size(cache)} for keys and values of {context:,} tokens (export.context)"
    room = room_of(vram)
    if room.gpu:
        fits = [kind for kind, total in sizes.items() if total + cache <= room.bytes]
        yield f"  on the card  {', '.join(fits) or 'none whole'}"


def _file(student: Shape, kind: str) -> int:
    return file_bytes(student, kind.removesuffix("-aware"))


def disk_lines(run: Run, student: Shape | None, book: float) -> Iterator[str]:
    """What the run folder comes to hold at most, beside what is free."""
    if student is None:
        return
    recipe = run.recipe
    trained = student.parameters * 4 * 3  # weights and both moments in float32
    if recipe.student.lora:
        trained = student.parameters // 10  # far less: adapters
    models = (1 + len(recipe.baselines)) * student.parameters * 4
    files = sum(_file(student, kind) for kind in dict.fromkeys(["F16", *recipe.files]))
    need = models + _KEPT_CHECKPOINTS * trained + files + book
    place = next(folder for folder in (run.path.resolve(), *run.path.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    yield f"disk           at most {size(need)} of {size(free)} that are free: models, two checkpoints, files, book"
    if need > free:
        yield f"  warning: too little at {place}; put the run elsewhere with --runs, or set baselines=[]"


def lesson_length(mean_tokens: float | None) -> float:
    """Tokens of a lesson, its question among them: a guess where nothing has been answered yet."""
    return QUESTION_TOKENS + (mean_tokens or ANSWER_TOKENS)
