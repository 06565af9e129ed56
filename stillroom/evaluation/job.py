"""What is measured, and how; plain data that goes to another process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.contracts.files import read_json
from stillroom.contracts.records import Lesson
from stillroom.evaluation.tasks import Draws, EvaluationTask, Item

ModelKind = Literal["local", "gguf", "api", "classifier", "onnx"]


@dataclass(frozen=True)
class ModelSpec:
    """A model to be measured.

    Attributes:
        name: what the results call it.
        kind: `local` (a Hugging Face folder or hub id), `gguf` (a file) or `api`; of those that choose among classes
            `classifier` (a Hugging Face folder or hub id) or `onnx` (a folder with model.onnx).
        path: the folder, hub id or file; the model's name at an API.
        tokenizer: folder or hub id of the tokenizer, for `gguf`; empty: the model's own folder. For `api`, of the server's,
            where it ranks options or predicts texts.
        api: base URL, for `api`.
        api_key_env: the environment variable that holds the key; the key itself never comes here.
        logprobs: ask an API for log-probabilities, which not all give and without which it has no confidence.
    """

    name: str
    kind: ModelKind
    path: str
    tokenizer: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    api: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    logprobs: bool = False


@dataclass(frozen=True)
class Settings:
    """How models are measured; decoding is greedy."""

    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    batch_size: int = 64
    """Questions answered at once by a local model or a GGUF file."""
    concurrency: int = 16
    """Requests in flight at an API."""
    max_length: int = 4096
    """Held-out lessons of more tokens are left out."""
    trusted: bool = False
    """Run answers' code even where the system cannot confine it; it changes no verdict."""


def kind_of(path: Path) -> ModelKind:
    """What lies at a path of this machine, by its files alone; a folder that tells nothing passes for a `local` model."""
    if path.suffix == ".gguf":
        return "gguf"
    if (path / "model.onnx").is_file():
        return "onnx"
    file = path / "config.json"
    named = read_json(file).get("architectures") if file.is_file() else None
    return "classifier" if named and named[0].endswith("ForSequenceClassification") else "local"


@dataclass(frozen=True)
class Job:
    """One model to measure."""

    spec: ModelSpec
    tasks: list[EvaluationTask]
    settings: Settings
    teacher: ModelSpec | None = None
    """Whose distributions a likelihood task's KL is taken to."""
    answers: str | None = None
    """JSONL file that keeps what an API answered."""

    @property
    def size(self) -> int:
        """Items and lessons in all; an API's log-probabilities of lessons are not asked for."""
        return sum(task.size for task in self.tasks if self.spec.kind != "api" or task.score != "likelihood")

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Job:
        """Back from `to_json`."""
        tree = json.loads(text)
        return Job(
            ModelSpec(**tree["spec"]),
            [_task(task) for task in tree["tasks"]],
            Settings(**tree["settings"]),
            ModelSpec(**tree["teacher"]) if tree["teacher"] else None,
            tree["answers"],
        )


def _task(tree: dict[str, Any]) -> EvaluationTask:
    items, lessons, draws = tree["items"], tree["lessons"], tree["draws"]
    return EvaluationTask(
        tree["name"],
        tree["score"],
        items and [Item(**item) for item in items],
        lessons and [Lesson(**lesson) for lesson in lessons],
        draws and Draws(**draws),
    )
