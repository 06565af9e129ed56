"""What the teacher is asked: every request of a recipe, named by all that its answer depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from stillroom.contracts.conversations import with_system
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Prompt, Request, Sampling, content_key, from_line

API_TOP_LOGPROBS = 20
"""The most alternatives a token that OpenAI-compatible APIs give."""

T = TypeVar("T")


def sampling_of(recipe: Recipe) -> Sampling:
    """How the recipe's teacher is asked."""
    alternatives = recipe.teacher.api is not None and recipe.teach.signal.kind == "top-k"
    return Sampling(
        temperature=recipe.teach.temperature,
        top_p=recipe.teach.top_p,
        max_new_tokens=recipe.teach.max_new_tokens,
        seed=recipe.seed,
        top_logprobs=API_TOP_LOGPROBS if alternatives else 0,
    )


def read_run_prompts(folder: Path) -> Iterator[Prompt]:
    """The lines of prompts/prompts.jsonl."""
    for line in read_lines(folder / "prompts.jsonl"):
        yield from_line(Prompt, line)


def requests_of(recipe: Recipe, teacher: str, prompts: Iterable[Prompt]) -> Iterator[Request]:
    """Every request, in the order of the prompts.

    Args:
        recipe: what is asked and how.
        teacher: the endpoint of an API, or the digest of a local model.
        prompts: the questions.
    """
    sampling = vars(sampling_of(recipe))
    for prompt in prompts:
        messages = with_system(prompt.messages, recipe.teach.system)
        for sample in range(recipe.teach.samples):
            key = content_key(teacher, recipe.teacher.model, messages, sampling, sample)
            yield Request(key, messages, sample, prompt.id)


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of up to `size` items."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window
