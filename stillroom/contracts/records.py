"""What the rooms hand to each other: chat messages, requests, replies, and the lines of a run's JSONL files.

Every line on disk is a JSON object with `messages`, the form that other tools read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

Message: TypeAlias = dict[str, Any]
"""One chat turn: {"role": "system" | "user" | "assistant", "content": str}; an assistant's may have `tool_calls` in OpenAI's
form, and then no content."""

SOURCE = "source"
"""The role of a turn that says where a text stands. It is shown to no model: what follows it is read as plain text."""

Finish: TypeAlias = Literal["stop", "length", "refused", "failed"]


def content_key(*parts: object) -> str:
    """32 hex digits that name this content; equal parts give equal keys on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    top_logprobs: int = 0
    """How many alternatives an API is asked for at each token; local models ignore it."""


@dataclass(frozen=True)
class Request:
    """One question to a model.

    `key` names question, model, parameters and sample, and seeds the draw; `prompt` is the question's id.
    """

    key: str
    messages: Sequence[Message]
    sample: int = 0
    prompt: str = ""

    def seed(self, sampling: Sampling) -> int:
        """63 bits that seed this request's draws."""
        return int(content_key(self.key, self.sample, sampling.seed)[:16], 16) >> 1


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    `token_ids` and `logprobs` (natural log, T = 1, of each token taken, the end-of-turn token included when
    `finish` is "stop") are None where the model does not tell; the first `reasoning_tokens` of them are reasoning
    that stands in `text`. `alternatives` holds an API's top log-probabilities, a list of [token text, logprob] a
    token. `reasoning` is what the API kept apart from the answer. `error` explains "failed" and "refused".
    """

    text: str
    finish: Finish
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    alternatives: list[list[tuple[str, float]]] | None = None
    reasoning: str | None = None
    reasoning_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    first_token_seconds: float | None = None
    """Until the first token was there, of an engine that tells; `seconds` is until the last."""


class Answerer(Protocol):
    """Anything that answers chat conversations: a local model, a GGUF file, an API."""

    name: str

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply as it is done, in any order; nothing is yielded twice."""
        ...

    def close(self) -> None:
        """Free what the model holds."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One question of the run: a line of prompts/prompts.jsonl."""

    messages: list[Message]
    source: str
    split: Literal["train", "tune"] = "train"
    reference: str | None = None
    """The right answer, where the source gave one."""

    @property
    def id(self) -> str:
        """The question's content key."""
        return content_key(self.messages)


@dataclass(frozen=True)
class Answer:
    """One answer of the teacher: a line of teach/answers.jsonl, synced before it counts."""

    key: str
    prompt: str
    sample: int
    messages: list[Message]
    """The conversation with the assistant's turn at its end."""
    finish: Finish
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprob: float | None = None
    """Sum over the answer's tokens; None where the teacher does not tell."""
    alternatives: list[list[tuple[str, float]]] | None = None
    seconds: float = 0.0
    error: str | None = None
    tools: list[dict[str, Any]] | None = None
    """Declarations of the tools that it could call: those of its question."""


@dataclass(frozen=True)
class Lesson:
    """What the student learns from: a line of filter/lessons.jsonl."""

    id: str
    messages: list[Message]
    split: Literal["train", "tune"] = "train"
    source: str = ""
    complete: bool = True
    """False where the answer was cut off: no end-of-turn token is learned."""
    checks: dict[str, bool] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    """Declarations of the tools that may be called, in OpenAI's form: the student is shown them with the conversation."""


@dataclass(frozen=True)
class Rejected:
    """What the student does not learn from, and why: a line of filter/rejected.jsonl."""

    id: str
    messages: list[Message]
    reason: str
    detail: str = ""


PROBE = "probe: "
"""What the tasks of rows about what is lost begin with; the probe's name follows."""


@dataclass(frozen=True)
class ResultRow:
    """One figure of evaluate/results.json; the report shows nothing that is not such a row.

    `low` and `high` bound a 95 % interval where there is one. `at` places a point of a curve (a step, a
    confidence), `versus` names the other model of a comparison, `p` is its two-sided p-value and `p_holm` what is left
    of it among all comparisons of this metric (Holm's correction).
    """

    model: str
    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    at: float | None = None
    versus: str | None = None
    p: float | None = None
    p_holm: float | None = None


def to_line(record: Any) -> dict[str, Any]:
    """A record as the JSON object of its line; empty optional fields are left out."""
    line = asdict(record)
    if isinstance(record, Prompt):
        line = {"id": record.id, **line}
    return {key: value for key, value in line.items() if value is not None and value != {}}


R = TypeVar("R")


def from_line(kind: type[R], line: dict[str, Any]) -> R:
    """The record of a JSON line; keys that the record does not have are ignored, so old runs stay readable."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]  # every record is a dataclass
    return kind(**{key: value for key, value in line.items() if key in known})
