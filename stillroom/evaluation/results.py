"""What is known about one model after it was measured; plain data that goes through JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stillroom.evaluation.pace import Pace
from stillroom.evaluation.scoring import Verdict

Outcome = Literal["win", "tie", "loss", "unreadable"]
"""What a judge says of an answer beside the teacher's."""


@dataclass(frozen=True)
class Written:
    """An answer that is neither right nor wrong."""

    text: str
    finish: str = "stop"
    outcome: Outcome | None = None
    """None: of the teacher's own, and before a judge was asked."""


@dataclass(frozen=True)
class Likelihood:
    """Sums over each held-out lesson's answer tokens, or each text's tokens, in nats; one entry a lesson or text."""

    tokens: list[int]
    loss: list[float]
    """Negative log-likelihood."""
    kl: list[float] | None = None
    """KL(teacher || model); None without a teacher whose tokens are the model's."""
    bytes: list[int] | None = None
    """Of each text in UTF-8, as far as its tokens were predicted; None of lessons."""


@dataclass(frozen=True)
class Figures:
    """What a model costs."""

    file_bytes: int | None = None
    """Weights on disk."""
    parameters: int | None = None
    peak_memory_bytes: int | None = None
    """Most memory that the process with this model, and nothing else, held at once; None for an API."""
    libraries_memory_bytes: int | None = None
    """The share of it that Python and its libraries held before the model was loaded."""
    peak_gpu_memory_bytes: int | None = None
    """Most memory that torch allocated on GPUs."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    questions: int = 0
    """Different ones, each asked once."""
    seconds: float = 0.0
    """Wall clock of the answers that these tokens belong to, loading left out."""
    pace: Pace | None = None
    """How fast it is for one who asks alone; None for an API, a classifier, and what was measured before this was."""

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second, all items together in batches."""
        return self.generated_tokens / self.seconds if self.generated_tokens and self.seconds else None

    @property
    def questions_per_second(self) -> float | None:
        """Questions a second in batches, of a model that chooses instead of writing."""
        return None if self.generated_tokens or not self.seconds else self.questions / self.seconds


@dataclass(frozen=True)
class ModelResult:
    """All that was measured on one model. Keys of the dicts are task names."""

    name: str
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    likelihoods: dict[str, Likelihood] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    written: dict[str, list[Written]] = field(default_factory=dict)
    """Answers to the questions of tasks that a judge looks at."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> ModelResult:
        """Back from `to_json`.

        Raises:
            TypeError, KeyError: the object is not a result.
        """
        return ModelResult(
            tree["name"],
            {task: [Verdict(**item) for item in items] for task, items in tree["verdicts"].items()},
            {task: Likelihood(**item) for task, item in tree["likelihoods"].items()},
            _figures(tree["figures"]),
            {task: [Written(**item) for item in items] for task, items in tree.get("written", {}).items()},
        )


def _figures(tree: dict[str, Any]) -> Figures:
    pace = tree.get("pace")
    return Figures(**{**tree, "pace": pace and Pace(**pace)})
