"""What the teacher is asked: every request of a recipe, named by all that its answer depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from stillroom.contracts.conversations import with_system
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Message, Prompt, Request, Sampling, content_key, from_line
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.endpoint import base_url

API_TOP_LOGPROBS = 20
"""The most alternatives a token that OpenAI-compatible APIs give."""

T = TypeVar("T")


@dataclass(frozen=True)
class Asking:
    """Who is asked and how: with a question and a sample's number, all that an answer depends on.

    Args:
        origin: the address of an API, or the digest of a local model.
        model: the model's name.
        sampling: how answers are drawn.
        samples: answers to each question.
        system: a system prompt for conversations that have none.
        parameters: more keys of an API's request body.
    """

    origin: str
    model: str
    sampling: Sampling
    samples: int = 1
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def requests(
        self, question: Iterable[Message], prompt: str, own: Mapping[str, Any] | None = None
    ) -> Iterator[Request]:
        """The requests of one question; `own` are parameters of its own, such as its tools."""
        messages = with_system(list(question), self.system)
        sampling: dict[str, Any] = dict(vars(self.sampling))
        if self.parameters or own:
            sampling["parameters"] = {**self.parameters, **(own or {})}
        for sample in range(self.samples):
            key = content_key(self.origin, self.model, messages, sampling, sample)
            yield (
                ChatRequest(key, messages, sample, prompt, own)
                if own
                else Request(key, messages, sample, prompt)
            )


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


@dataclass(frozen=True)
class ToolPrompt(Prompt):
    """A question with the declarations of the tools that may be called, in OpenAI's form, if there are any."""

    tools: list[dict[str, Any]] | None = None


def read_run_prompts(folder: Path) -> Iterator[ToolPrompt]:
    """The lines of prompts/prompts.jsonl."""
    for line in read_lines(folder / "prompts.jsonl"):
        yield from_line(ToolPrompt, line)


def requests_of(recipe: Recipe, teacher: str, prompts: Iterable[Prompt]) -> Iterator[Request]:
    """Every request, in the order of the prompts.

    Args:
        recipe: what is asked and how.
        teacher: the digest of a local model; an API is known by its address.
        prompts: the questions.
    """
    teach = recipe.teach
    origin = base_url(recipe.teacher.api) if recipe.teacher.api else teacher
    asking = Asking(
        origin, recipe.teacher.model, sampling_of(recipe), teach.samples, teach.system, teach.parameters
    )
    for prompt in prompts:
        tools = prompt.tools if isinstance(prompt, ToolPrompt) and recipe.teacher.api else None
        yield from asking.requests(prompt.messages, prompt.id, {"tools": tools} if tools else None)


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of up to `size` items."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window
