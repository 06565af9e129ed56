"""How the student trains, and what trains beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.prompts import PromptSource
from stillroom.contracts.recipe.schedule import Positive, Weight, value_at
from stillroom.contracts.recipe.section import Section

Baseline = Literal["before", "labels-only", "answers-only"]
Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_kl",
    "skew_reverse_kl",
    "alpha_beta",
    "total_variation",
]


class Loss(Section):
    """The weights of the training loss's terms: numbers, or `{share of the training: number}`, straight in between."""

    hard: Weight = Field(0.0, description="Cross-entropy with the lesson's own tokens.")
    soft: Weight = Field(1.0, description="The divergence from what the teacher held possible.")
    divergence: Divergence = Field(
        "forward_kl",
        description="How the two distributions are compared: see docs/losses.md. Signals that are drawn or cut serve "
        "`forward_kl`; a live teacher and signals of kind `hidden` serve every one.",
    )

    hidden: Weight = Field(0.0, description="Hidden states of matched layers; wants a live teacher.")
    attention: Weight = Field(0.0, description="Attention maps of matched layers, likewise.")
    attention_output: Weight = Field(0.0, description="What attention adds to the hidden state, likewise.")
    mlp: Weight = Field(0.0, description="What the MLP adds to the hidden state, likewise.")
    query: Weight = Field(0.0, description="Relations among the queries of a layer, likewise.")
    key: Weight = Field(0.0, description="Relations among the keys of a layer, likewise.")
    value: Weight = Field(0.0, description="Relations among the values of a layer, likewise.")

    @property
    def matched(self) -> dict[str, Weight]:
        """The weights of what is matched inside the models."""
        return {
            "hidden": self.hidden,
            "attention": self.attention,
            "attention_output": self.attention_output,
            "mlp": self.mlp,
            "query": self.query,
            "key": self.key,
            "value": self.value,
        }

    @model_validator(mode="after")
    def _some(self) -> Loss:
        terms = (self.hard, self.soft, *self.matched.values())
        if any(not sum(value_at(term, share) for term in terms) for share in self._shares(terms)):
            raise ValueError("hard and soft are both 0, and nothing is matched: nothing would be learned")
        return self

    @staticmethod
    def _shares(terms: tuple[Weight, ...]) -> list[float]:
        """Where all terms could be 0 at once: at the start, the end and the points of the schedules."""
        return [0.0, 1.0, *(share for term in terms if isinstance(term, dict) for share in term)]


class Match(Section):
    """How the inside of a live teacher is matched, where distil.loss says that it is."""

    layers: Literal["uniform", "last"] | dict[int, int] = Field(
        "uniform",
        description="Which layers: `uniform`, spread over both depths; `last` to last; or the student's layer: the "
        "teacher's. 0 is the embedding, 1 the first layer's output.",
    )
    layer_weights: dict[int, float] = Field(
        {}, description="Weights of the student's layers; 1 for those not named."
    )
    states: Literal["mse", "cosine"] = Field(
        "mse", description="How hidden states and the outputs of attention and MLP are compared."
    )
    maps: Literal["kl", "mse"] = Field("kl", description="How attention maps are compared.")
    relation_heads: int = Field(
        8, ge=1, description="Heads that queries, keys or values are split into for their relations."
    )


class Curriculum(Section):
    """Easy lessons first."""

    by: Literal["length", "doubt"] = Field(
        "length",
        description="What makes a lesson hard: `length`, or `doubt`, how unsure the teacher was of it, which a book knows.",
    )
    start: float = Field(
        0.2, gt=0, le=1, description="Share of the lessons, the easiest, that are open at first."
    )
    until: float = Field(0.5, gt=0, le=1, description="Share of the training after which all are open.")


class Past(Section):
    """The student's own past as its teacher."""

    decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="What the teacher keeps of itself when it is refreshed; the student gives the rest. 0: it becomes a "
        "copy of the student.",
    )
    every: int = Field(1, ge=1, description="Optimiser steps between refreshes.")


class Replay(Section):
    """General texts or conversations beside the lessons, so that a student does not forget what it could."""

    file: str = Field(
        description="Plain texts, or conversations as JSONL of messages; what prompts.file takes can be given."
    )
    form: Literal["corpus", "conversations"] = Field(
        "corpus",
        description="`corpus`: texts, cut into blocks of distil.max_length tokens. `conversations`: the last turn of each, "
        "the assistant's, is learned.",
    )
    share: float = Field(
        0.1, gt=0, le=10, description="Rows of it in each step, relative to the step's lessons; one at least."
    )
    limit: int | None = Field(
        None, ge=1, description="Take at most this many blocks or conversations, the first ones."
    )

    @property
    def source(self) -> PromptSource:
        """As a source of questions that bring their own answers."""
        form: Literal["corpus", "auto"] = "corpus" if self.form == "corpus" else "auto"
        return PromptSource(file=self.file, form=form, answers="given", limit=self.limit)


class Rounds(Section):
    """On-policy rounds: the student writes answers, the teacher says what it thinks of each token, the student trains on."""

    count: int = Field(4, ge=1, description="How often the student writes.")
    start: float = Field(
        0.5, ge=0, lt=1, description="Share of the training, on lessons alone, before the first round."
    )
    questions: int = Field(
        256, ge=1, description="Questions of the lessons that are answered in each round, drawn anew."
    )
    temperature: float = Field(1.0, ge=0, description="At which the student's answers are drawn.")
    share: float = Field(
        0.5, gt=0, le=1, description="Share of a step's rows that the student wrote; the others are lessons."
    )
    buffer: int = Field(2, ge=1, description="How many rounds' answers are trained on, the newest ones.")
    patience: int | None = Field(
        None,
        ge=1,
        description="After how many rounds without a better score training ends. The score is the share of lessons held "
        "out (splits.tune) that the student answers as the lesson does; the best student is kept. Empty: no end, the last.",
    )


class Distil(Section):
    """How the student trains."""

    loss: Loss = Field(default_factory=Loss, description="The weights of the loss's terms.")
    match: Match = Field(default_factory=Match, description="How the inside of the models is matched.")
    teacher: Literal["book", "live", "online", "self"] = Field(
        "book",
        description="Whom the soft loss hears: the lesson book; the teacher itself, `live` beside the student and asked "
        "anew at every step; `online`, live and trained as well, each learning from the other; or `self`, the student's "
        "own past (distil.past). A live teacher is a Hugging Face folder. But for the book teach.signal.kind may be `none`.",
    )
    past: Past = Field(
        default_factory=Past, description="What the student's past is, where it is the teacher."
    )
    temperature: Positive = Field(
        1.0,
        description="Softens both distributions; signals are captured at it, and the soft loss carries T squared. With a "
        "live teacher or signals of kind `hidden` it may change: {0: 4.0, 0.5: 1.0}.",
    )
    curriculum: Curriculum | None = Field(None, description="Easy lessons first. Empty: all from the start.")
    rounds: Rounds | None = Field(
        None,
        description="On-policy rounds: the student trains on what it writes itself, scored by the teacher. Empty: none.",
    )
    replay: Replay | None = Field(
        None,
        description="General text beside the lessons, against forgetting. A live teacher is heard on it too; otherwise its "
        "own words are learned. Empty: none.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate (AdamW).")
    epochs: float = Field(3.0, gt=0, description="Passes over the lessons.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps instead of epochs.")
    batch_size: int = Field(32, ge=1, description="Lessons in one optimiser step, on all devices together.")
    micro_batch_size: int = Field(32, ge=1, description="Lessons in one forward pass on one device.")
    max_length: int = Field(2048, ge=8, description="Longer lessons are left out, and counted.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of training; `auto` is bfloat16 where the hardware is quick at it."
    )
    optimiser: str = Field(
        "adamw_torch_fused",
        description="Any `optim` of transformers: adamw_8bit, paged_adamw_8bit (these want bitsandbytes), adafactor, ...",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass: less memory, about a third more time.",
    )
    checkpoint_every: int = Field(100, ge=1, description="Optimiser steps between checkpoints.")
    validate_every: int = Field(100, ge=1, description="Optimiser steps between validation losses.")
    report_to: list[str] = Field(
        [],
        description="Trackers that transformers knows: tensorboard (files in distil/tensorboard), wandb, ...",
    )

    @model_validator(mode="after")
    def _one_order(self) -> Distil:
        if self.rounds and self.curriculum and self.curriculum.until > self.rounds.start:
            raise ValueError(
                f"curriculum.until ({self.curriculum.until:g}) is later than rounds.start ({self.rounds.start:g}): lessons "
                "can be sorted only until the student writes"
            )
        return self
