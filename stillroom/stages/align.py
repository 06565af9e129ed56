"""The distilled student learns to prefer right answers to wrong ones; a recipe without `align` has no such stage."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.contracts.conversations import with_system
from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines, storage, write_lines
from stillroom.contracts.records import Message, content_key
from stillroom.lessons.filter.verification import final_answer
from stillroom.lessons.questions import answered_questions, question_line
from stillroom.models.rendering import Renderer
from stillroom.models.writing import write_apart
from stillroom.ranks import once
from stillroom.stages.context import StageContext
from stillroom.training.adapters import add_lora, merged
from stillroom.training.aligning import align
from stillroom.training.keeping import write_model
from stillroom.training.students import save_student

_HELD_OUT = 200


def run(context: StageContext) -> dict[str, Any]:
    """Write align/pairs.jsonl, align/student and align/metrics.jsonl.

    Raises:
        DataError: there are no pairs, or a line of the file is not one.
        MissingExtra: TRL is not installed.
    """
    recipe, folder = context.recipe, context.folder
    settings = recipe.align
    assert settings is not None, "the pipeline leaves this stage out"
    source = context.run.need("distil") / "student"
    renderer = Renderer.load(source, trust_remote_code=recipe.student.trust_remote_code)
    found = once(lambda: list(_pairs(context)))
    fitting = [pair for pair in found if _length(pair, renderer) <= settings.max_length]
    once(lambda: write_lines(folder / "pairs.jsonl", fitting))
    train = [_columns(pair) for pair in fitting if pair["split"] == "train"]
    held_out = [_columns(pair) for pair in fitting if pair["split"] != "train"][:_HELD_OUT]
    if not train:
        raise DataError(
            "there are no pairs to align on",
            got=f"align.pairs: {settings.pairs}, {len(found)} pairs, {len(found) - len(fitting)} too long",
            expected="right and wrong answers to the same questions",
            do="raise teach.samples until some are wrong, set align.pairs to teacher or a file, or leave align out",
        )
    trust = {"trust_remote_code": recipe.student.trust_remote_code}
    student = _plain(source, trust)
    if settings.lora:
        student = add_lora(student, settings.lora, recipe.seed)
    counts = align(
        student,
        renderer.tokenizer,
        train,
        held_out,
        settings=settings,
        seed=recipe.seed,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        progress=context.progress,
    )
    whole, kind = (
        merged(student, lambda: _plain(source, trust)),
        AutoConfig.from_pretrained(source, **trust).dtype,
    )
    write_model(folder / "student", lambda scratch: save_student(whole, renderer.tokenizer, scratch, kind))
    with storage(folder):
        once(lambda: shutil.rmtree(folder / "checkpoints"))
    del student
    gc.collect()
    lengths = {
        f"tokens of a {side} answer": round(
            mean(len(renderer.tokenizer(_text(pair[side]))["input_ids"]) for pair in fitting), 1
        )
        for side in ("chosen", "rejected")
    }
    return counts | lengths | {"too long": len(found) - len(fitting)}


def _plain(folder: Path, trust: dict[str, bool]) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True, **trust)


def _pairs(context: StageContext) -> Iterator[dict[str, Any]]:
    """Every pair: prompt, chosen and rejected as lists of messages, split, perhaps tools."""
    settings = context.recipe.align
    assert settings is not None
    if settings.pairs == "verified":
        path = context.run.need("filter") / "preferences.jsonl"
        lines: Iterable[dict[str, Any]] = read_lines(path) if path.is_file() else ()
        yield from (line | {"split": line.get("split", "train")} for line in lines)
    elif settings.pairs == "teacher":
        yield from _against_the_student(context)
    else:
        path = context.run.locate(settings.pairs)
        for number, line in enumerate(read_lines(path), 1):
            yield _of_file(line, f"{path}, line {number}", context.recipe.teach.system)


def _of_file(line: dict[str, Any], where: str, system: str | None) -> dict[str, Any]:
    sides = {}
    for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        value = line.get(name)
        turns = [{"role": role, "content": value}] if isinstance(value, str) else value
        if not turns or not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(
                f"{where} is no pair",
                got=f"{name}: {str(value)[:60]}",
                expected="prompt, chosen and rejected, each a text or a list of messages",
            )
        sides[name] = turns
    # One in twenty, by content, tells how many pairs are won that were not trained on.
    held_out = int(content_key(sides["prompt"])[:8], 16) % 20 == 0
    return sides | {
        "prompt": with_system(sides["prompt"], system),
        "split": line.get("split") or ("tune" if held_out else "train"),
    }


def _against_the_student(context: StageContext) -> Iterator[dict[str, Any]]:
    """A lesson's answer over the student's own, where that comes to something else."""
    recipe, folder = context.recipe, context.folder
    asked, out = folder / "questions.jsonl", folder / "answers.jsonl"
    lessons = {
        key: lesson
        for key, lesson in answered_questions(context.run.need("filter") / "lessons.jsonl")
        if lesson.complete
    }
    if not out.is_file():
        write_lines(asked, (question_line(key, lesson) for key, lesson in lessons.items()))
        paper = {"questions": str(asked), "out": str(out), "temperature": 1.0, "seed": recipe.seed}
        model, what = context.run.need("distil") / "student", "the student answers"
        with context.progress.meter(what, len(lessons), "answers") as meter:
            write_apart(model, [paper], recipe, label=what, advance=meter.advance)
    for line in read_lines(out):
        lesson, rule = lessons[line["key"]], recipe.filter
        right = str(lesson.messages[-1].get("content") or "")
        if line["finish"] == "stop" and final_answer(rule, line["text"]) != final_answer(rule, right):
            yield {
                "prompt": lesson.messages[:-1],
                "chosen": lesson.messages[-1:],
                "rejected": [{"role": "assistant", "content": line["text"]}],
                "split": lesson.split,
                **({"tools": json.dumps(lesson.tools)} if lesson.tools else {}),
            }


def _columns(pair: dict[str, Any]) -> dict[str, Any]:
    """What TRL reads of a pair."""
    return {name: pair[name] for name in ("prompt", "chosen", "rejected", "tools") if pair.get(name)}


def _length(pair: dict[str, Any], renderer: Renderer) -> int:
    return max(len(renderer.lesson([*pair["prompt"], *pair[side]]).ids) for side in ("chosen", "rejected"))


def _text(turns: list[Message]) -> str:
    return str(turns[-1].get("content") or "")
