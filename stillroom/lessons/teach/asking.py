"""What the teacher is asked: every request of a recipe, named by all that its answer depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from stillroom.contracts.conversations import with_system
from stillroom.contracts.files import read_lines
from stillroom.contracts.recipe import EXPANDED, Recipe, Teacher
from stillroom.contracts.records import Message, Prompt, Reply, Request, Sampling, content_key, from_line
from stillroom.lessons.prompts.logs import logged_reply
from stillroom.lessons.teach.answered import AnswersFile, answer_of
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.endpoint import base_url

API_TOP_LOGPROBS = 20
"""The most alternatives a token that OpenAI-compatible APIs give."""

UNNAMED = "a model that the log does not name"
_SIDE_BY_SIDE = 4096
"""Requests that are sorted together by how they begin."""
_ALIKE = 1000
"""So many characters, a good part of the 1,024 tokens from which on providers cache, make a beginning the same."""
_TOGETHER = 500
"""Answers of logs that are synced together."""

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

    def about(self, prompt: Prompt, *, api: bool, logged: bool) -> Iterator[Request]:
        """The requests of a question, with its own tools; a log's answer is the first sample's.

        Args:
            prompt: the question.
            api: whether all its own parameters can be passed on; a local model is told of its tools alone.
            logged: whether a log's answer is taken.
        """
        own = prompt.own if isinstance(prompt, RunPrompt) else {}
        if not api:  # chat templates know tools, not which of them must be called
            own = {name: value for name, value in own.items() if name == "tools"}
        asked = self.requests(prompt.messages, prompt.id, own or None)
        if logged and isinstance(prompt, RunPrompt) and (reply := logged_reply(vars(prompt))) is not None:
            first = next(asked)
            said = prompt.answer, prompt.answered_by, prompt.finish
            yield LoggedRequest(
                content_key("log", first.messages, prompt.own, *said),
                first.messages,
                first.sample,
                first.prompt,
                reply=reply,
                answered_by=prompt.answered_by or UNNAMED,
            )
        yield from asked


def sampling_of(recipe: Recipe) -> Sampling:
    """How the recipe's teacher is asked."""
    signal = recipe.teach.signal
    alternatives = (
        recipe.teacher.api is not None and signal.kind == "top-k" and signal.source == "top_logprobs"
    )
    return Sampling(
        temperature=recipe.teach.temperature,
        top_p=recipe.teach.top_p,
        max_new_tokens=recipe.teach.max_new_tokens,
        seed=recipe.seed,
        top_logprobs=API_TOP_LOGPROBS if alternatives else 0,
    )


@dataclass(frozen=True)
class RunPrompt(Prompt):
    """A line of prompts/prompts.jsonl with all that its requests depend on; the fields are those of a Question."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    answer: Message | None = None
    answered_by: str | None = None
    finish: str | None = None
    check: str | None = None
    document: str | None = None

    @property
    def own(self) -> dict[str, Any]:
        """What goes into its own request to an API as it is."""
        own = {name: getattr(self, name) for name in ("tools", "tool_choice", "response_format")}
        return {name: value for name, value in own.items() if value}


@dataclass(frozen=True)
class KnownRequest(ChatRequest):
    """A request with what is known of its question beside what is asked, for those who read the answer without a run."""

    known: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the answer's line: reference, check, document, tools."""

    @staticmethod
    def of(request: Request, known: Mapping[str, Any]) -> KnownRequest:
        """A request and what is known of its question."""
        if isinstance(request, KnownRequest):
            return replace(request, known=known)
        own = request.parameters if isinstance(request, ChatRequest) else {}
        return KnownRequest(request.key, request.messages, request.sample, request.prompt, own, known)

    def as_asked(self) -> Request:
        """What the teacher is given."""
        asked = self.key, self.messages, self.sample, self.prompt
        return ChatRequest(*asked, self.parameters) if self.parameters else Request(*asked)


@dataclass(frozen=True)
class LoggedRequest(KnownRequest):
    """A request that a log holds the answer of, so that it is never sent; its key does not depend on the teacher."""

    reply: Reply = field(kw_only=True)
    answered_by: str = field(kw_only=True)


def read_run_prompts(folder: Path) -> Iterator[RunPrompt]:
    """The lines of prompts/prompts.jsonl."""
    for line in read_lines(folder / "prompts.jsonl"):
        yield from_line(RunPrompt, line)


def tools_of(prompt: RunPrompt, parameters: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a question is asked with: its own, else those of every request's `parameters`."""
    return prompt.tools or parameters.get("tools") or None


def requests_of(recipe: Recipe, teacher: str, prompts: Iterable[Prompt]) -> Iterator[Request]:
    """Every request, in the order of the prompts; those that a log answered already are LoggedRequests.

    Args:
        recipe: what is asked and how.
        teacher: the digest of a local model; an API is known by its address.
        prompts: the questions, RunPrompts where they may bring tools or a log's answer.
    """
    teach = recipe.teach
    origin = base_url(recipe.teacher.api) if recipe.teacher.api else teacher
    asking = Asking(
        origin, recipe.teacher.model, sampling_of(recipe), teach.samples, teach.system, teach.parameters
    )
    for prompt in prompts:
        yield from asking.about(
            prompt, api=recipe.teacher.api is not None, logged=teach.logged_answers == "take"
        )


def teacher_weights(recipe: Recipe, source: str) -> list[float]:
    """How much each teacher counts for the lessons of a source, by its title: the first, then the others.

    Those count that name the source in `domains`; where none does, those that name none.
    """
    teachers, title = (recipe.teacher, *recipe.more_teachers), source.removesuffix(EXPANDED)
    expert = any(_weight(teacher, title) for teacher in teachers)
    return [_weight(teacher, title if expert else None) for teacher in teachers]


def _weight(teacher: Teacher, domain: str | None) -> float:
    """A teacher's weight if it names the domain, or, of lessons of no domain, if it names none; else 0."""
    heard = not teacher.domains if domain is None else domain in teacher.domains
    return teacher.weight if heard else 0.0


def beginnings_together(requests: Iterable[Request]) -> Iterator[Request]:
    """The requests with those side by side that begin alike, so that a provider finds their beginning in its cache.

    What begins alike has the same system prompt, tools and first part of its question, such as a document. Order is kept
    otherwise; a bounded number of requests is looked at together.
    """
    for window in windows(requests, _SIDE_BY_SIDE):
        groups: dict[object, list[Request]] = {}
        for request in window:
            groups.setdefault(_beginning(request), []).append(request)
        for group in groups.values():
            yield from group


def _beginning(request: Request) -> object:
    tools = request.parameters.get("tools") if isinstance(request, ChatRequest) else None
    opening = "\n".join(str(message.get("content")) for message in request.messages[:2])
    return content_key(tools), opening[:_ALIKE]


def take_logged(requests: Iterable[Request], file: AnswersFile) -> Iterator[Request]:
    """The requests; what a log answered is in the file of answers by the time that it comes, so that nobody is asked."""
    held: list[LoggedRequest] = []
    for request in requests:
        if not isinstance(request, LoggedRequest):
            yield request
            continue
        held.append(request)
        if len(held) == _TOGETHER:
            yield from _taken(held, file)
            held = []
    yield from _taken(held, file)


def _taken(logged: list[LoggedRequest], file: AnswersFile) -> list[LoggedRequest]:
    new = {request.key: request for request in logged if request.key not in file}
    file.append(
        answer_of(request, request.reply, 0.0, request.answered_by, request.known) for request in new.values()
    )
    return logged


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of up to `size` items."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window
