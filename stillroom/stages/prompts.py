"""Questions in: sources are read or invented, duplicates and evaluation items taken out, mixed, splits drawn.

What is set apart for the cascade goes into a file of its own, calibration.jsonl, so that no later stage can teach it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Literal

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines, whole_lines, write_lines
from stillroom.contracts.progress import Meter
from stillroom.contracts.recipe import EXPANDED, PromptSource, Recipe, Splits
from stillroom.contracts.records import Prompt, content_key, from_line, to_line
from stillroom.lessons.expand.diversity import Embed, Reservoir, diversity
from stillroom.lessons.expand.expanding import Expanding
from stillroom.lessons.prompts.mixing import Stock, choose, interleave, quotas
from stillroom.lessons.prompts.questions import Question, conversation_key, question_key, user_text
from stillroom.lessons.prompts.sources import held_out_keys, read_questions
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.stages.context import StageContext


@dataclass(frozen=True)
class _Pool:
    """Questions that can be read again and again: a source's, or those invented from it."""

    title: str
    source: PromptSource
    path: Path
    invented: bool = False
    blocks: Callable[[PromptSource, Path, str], Iterator[Question]] | None = None
    """Cuts a corpus."""

    def questions(self, say: Callable[[str], None] = lambda text: None) -> Iterator[Question]:
        """All of them, in order; `say` is told how a source's file is understood."""
        if self.invented:
            return (from_line(Question, line) for line in read_lines(self.path))
        if self.blocks is not None:
            return self.blocks(self.source, self.path, self.title)
        return read_questions(self.source, self.path, say)

    def titled(self) -> Iterator[tuple[str, Question]]:
        """Each question with the pool's title."""
        for question in self.questions():
            yield self.title, question


def run(context: StageContext) -> dict[str, Any]:
    """Write prompts/prompts.jsonl, and calibration.jsonl where the recipe sets questions apart.

    Raises:
        DataError: a file is unusable, or no question is left.
        TeacherError, ServiceFault: the teacher that should invent questions cannot.
    """
    recipe, counts = context.recipe, Counter[str]()
    held_out, seen = held_out_keys(recipe, context.run.locate), KeyTable()

    def stocks_of(pools: list[_Pool]) -> list[Stock]:
        with context.progress.meter("reading", None, "questions") as meter:
            return [_take_stock(context, pool, seen, held_out, counts, meter) for pool in pools]

    # Files first: what is wrong in them comes to light before the teacher is paid.
    pools = _pools(context)
    stocks = stocks_of(pools)
    inventions, expansions = _invented(context)
    stocks += stocks_of(inventions)
    pools += inventions
    wanted = quotas(stocks, recipe.mix.count)
    masks = [
        choose(
            stock,
            quota,
            recipe.seed + place,
            stratified=pool.source.stratify is not None and not pool.invented,
        )
        for place, (stock, quota, pool) in enumerate(zip(stocks, wanted, pools, strict=True))
    ]
    sample: Reservoir[str] = Reservoir(seed=recipe.seed)

    def questions() -> Iterator[tuple[str, Question]]:
        return interleave([(pool.titled(), mask) for pool, mask in zip(pools, masks, strict=True)])

    labelled = _labelled(recipe, (question for _, question in questions()))

    def lines(set_apart: Callable[[dict[str, Any]], None] | None) -> Iterator[dict[str, Any]]:
        for title, question in questions():
            if labelled is not None and question_key(question.messages) not in labelled:
                question = replace(question, reference=None)
            line = _line(title, question, recipe.splits, recipe.seed)
            counts[line["split"]] += 1
            if set_apart is not None and line["split"] == "calibrate":
                set_apart(line)
                continue
            counts["with a right answer"] += question.reference is not None
            counts["answered in a log"] += question.answer is not None
            sample.add(user_text(question.messages))
            yield line

    with ExitStack() as stack:
        own = context.folder / "calibration.jsonl"
        set_apart = stack.enter_context(whole_lines(own)) if recipe.splits.calibrate else None
        total = write_lines(context.folder / "prompts.jsonl", lines(set_apart))
    _refuse_nothing(total, counts)
    figures = diversity(sample.texts, _embedder(context))
    context.progress.say(
        "  diversity: " + ", ".join(f"{name} {figure:,}" for name, figure in figures.items())
    )
    return {
        "prompts": total,
        **{name: count for name, count in counts.items() if count},
        "sources": {pool.title: quota for pool, quota in zip(pools, wanted, strict=True)},
        "diversity": figures,
        **({"expansions": expansions} if expansions else {}),
    }


def _labelled(recipe: Recipe, questions: Iterable[Question]) -> set[str] | None:
    """The keys of the questions whose right answer is used, where the recipe limits how many; None: all.

    So many of each class are drawn of those to train on, by their text and the seed alone.
    """
    wanted = recipe.classify.labels if recipe.classify else None
    if wanted is None:
        return None
    drawn: dict[str, list[tuple[float, str]]] = {}
    for question in questions:
        key = question_key(question.messages)
        if question.reference is None or _split(key, recipe.splits, recipe.seed) != "train":
            continue
        place = (-int(content_key(key, recipe.seed, "labelled")[:12], 16), key)
        heap = drawn.setdefault(question.reference, [])
        heappush(heap, place)
        if len(heap) > wanted:
            heappop(heap)  # the one that comes last by its draw
    return {key for heap in drawn.values() for _, key in heap}


def _embedder(context: StageContext) -> Embed | None:
    """The recipe's, loaded only now."""
    name = context.recipe.mix.embedder
    if name is None:
        return None
    from stillroom.models.embedding import Embedder

    return Embedder(resolve_model(name, context.run.base))


def _refuse_nothing(total: int, counts: Counter[str]) -> None:
    if total == 0:
        raise DataError(
            "no question is left to ask",
            got=f"{counts['read']} read, all of them duplicates or evaluation items",
            do="give more questions",
        )
    if counts["train"] == 0:
        raise DataError("no question is left to train on", got=f"{total} in all", do="give more questions")


def _pools(context: StageContext) -> list[_Pool]:
    recipe = context.recipe

    def blocks(source: PromptSource, path: Path, title: str) -> Iterator[Question]:
        # Only here a tokenizer is needed, and its library is slow to load.
        from stillroom.lessons.prompts.corpora import corpus_questions
        from stillroom.models.rendering import Renderer

        tokenizer = student_source(recipe, context.run.base)
        renderer = Renderer.load(tokenizer, trust_remote_code=recipe.student.trust_remote_code)
        yield from corpus_questions(source, path, title, renderer, recipe.distil.max_length)

    return [
        _Pool(
            source.title,
            source,
            context.run.locate(source.file),
            blocks=blocks if source.form == "corpus" else None,
        )
        for source in recipe.prompts
        if source.form != "documents"
    ]


def _invented(context: StageContext) -> tuple[list[_Pool], dict[str, dict[str, int]]]:
    """What the teacher invents from each source that is to be expanded, and what came of it."""
    pools, told = [], {}
    for place, source in enumerate(context.recipe.prompts):
        if source.expand:
            title = source.title + EXPANDED
            path = context.folder / f"invented-{place}.jsonl"
            expanding = Expanding(context.run, context.folder, context.progress, source, source.expand)
            told[title] = expanding.write(path)
            pools.append(_Pool(title, source, path, invented=True))
    return pools, told


def _take_stock(
    context: StageContext, pool: _Pool, seen: KeyTable, held_out: KeyTable, counts: Counter[str], meter: Meter
) -> Stock:
    """Which questions of a pool are new and may be asked."""
    stock = Stock(pool.source.weight)
    for question in pool.questions(context.progress.say):
        meter.advance()
        counts["read"] += 1
        key = conversation_key(question.messages)
        if held_out.get(question_key(question.messages)) is not None:
            counts["in evaluation"] += 1
            stock.drop()
        elif seen.get(key) is not None:
            counts["duplicates"] += 1
            stock.drop()
        else:
            seen.put(key, 0)
            stock.add(question.stratum)
    return stock


def _line(title: str, question: Question, splits: Splits, seed: int) -> dict[str, Any]:
    """The line of prompts.jsonl: a Prompt, and what else is known of the question."""
    split = _split(question_key(question.messages), splits, seed)
    prompt = to_line(Prompt(question.messages, title, reference=question.reference))
    return {**prompt, "split": split, **question.extras()}


def _split(key: str, splits: Splits, seed: int) -> Literal["train", "tune", "calibrate"]:
    """A question's split depends on its text and the seed only, so that adding questions moves none."""
    draw = int(content_key(key, seed)[:12], 16) / 16**12
    if draw < splits.tune:
        return "tune"
    # From the other end, so that neither share moves the other's questions.
    return "calibrate" if draw >= 1 - splits.calibrate else "train"
