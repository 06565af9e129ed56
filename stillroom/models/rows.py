"""From requests to prompts to be continued, and from what was drawn to replies: the same for every local engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice

from stillroom.checks.reasoning import reasoning_length
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.rendering import Renderer


@dataclass(eq=False)
class Row:
    """One prompt and what has been drawn after it."""

    request: Request
    prompt: list[int]
    seed: int
    limit: int
    """Most tokens to draw."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    begun: float = 0.0
    """When its prompt began to be read, and when its first token was there, by `time.perf_counter`."""
    spoke: float = 0.0

    def add(self, token: int, logprob: float) -> None:
        """Take the token just drawn."""
        if not self.ids:
            self.spoke = time.perf_counter()
        self.ids.append(token)
        self.logprobs.append(logprob)

    def done(self, eos_ids: Set[int]) -> bool:
        """Whether nothing more is to be drawn."""
        return self.ids[-1] in eos_ids or len(self.ids) >= self.limit


def answer_rows(
    requests: Iterable[Request],
    sampling: Sampling,
    *,
    renderer: Renderer,
    context: int | None,
    window: int,
    generate: Callable[[list[Row]], Iterator[Row]],
) -> Iterator[tuple[Request, Reply]]:
    """Answer requests, a bounded window at a time.

    Args:
        requests: read a window ahead. Of a ChatRequest's own parameters its tools are shown to the model.
        sampling: how to draw.
        renderer: makes the prompts.
        context: most tokens of prompt and answer together; None where the model has no bound. A prompt that leaves
            no room comes back as "failed".
        window: how many requests are sorted by length together.
        generate: continues rows, longest prompts first, and gives each back when it is done.
    """
    remaining = iter(requests)
    while chunk := list(islice(remaining, window)):
        rows = [_row(request, sampling, renderer, context) for request in chunk]
        yield from ((row.request, _no_room(row, context)) for row in rows if row.limit < 1)
        fitting = sorted((row for row in rows if row.limit > 0), key=lambda row: -len(row.prompt))
        for row in generate(fitting):
            yield row.request, _reply(row, renderer)


def _row(request: Request, sampling: Sampling, renderer: Renderer, context: int | None) -> Row:
    own = request.parameters if isinstance(request, ChatRequest) else {}
    prompt = renderer.prompt_ids(request.messages, own.get("tools"))
    room = sampling.max_new_tokens if context is None else context - len(prompt)
    limit = min(sampling.max_new_tokens, room) if prompt else 0
    return Row(request, prompt, request.seed(sampling), limit)


def _no_room(row: Row, context: int | None) -> Reply:
    error = "the prompt is empty"
    if row.prompt:
        error = f"the prompt has {len(row.prompt):,} tokens and the model's context {context:,}"
    return Reply("", "failed", prompt_tokens=len(row.prompt), error=error)


def _reply(row: Row, renderer: Renderer) -> Reply:
    return Reply(
        text=renderer.answer_text(row.prompt, row.ids),
        finish="stop" if row.ids[-1] in renderer.eos_ids else "length",
        token_ids=row.ids,
        logprobs=row.logprobs,
        reasoning_tokens=reasoning_length(len(row.ids), lambda n: renderer.decode(row.ids[:n])),
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.ids),
        seconds=time.perf_counter() - row.begun,
        first_token_seconds=row.spoke - row.begun,
    )
