"""The recipe: one YAML file, one typed model, one home per setting.

Every field has a description; `docs/recipe.md` and the JSON Schema are generated from them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Kind = Literal["F32", "F16", "Q8_0", "Q4_K_M"]
Baseline = Literal["before", "labels-only", "answers-only"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Teacher(Section):
    """The model that is asked."""

    model: str = Field(
        description="A hub id, a Hugging Face folder, a .gguf file, `embedded:tickets-teacher`, or the model's name "
        "at an API."
    )
    api: str | None = Field(
        None,
        description="Base URL of an OpenAI-compatible API (http://127.0.0.1:8080/v1), or `openai` for "
        "$OPENAI_BASE_URL, else the provider's default. Empty: the model is local.",
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="The environment variable that holds the API key; the key itself is never kept.",
    )
    tokenizer: str | None = Field(
        None,
        description="Folder or hub id of the tokenizer, for a .gguf teacher or an API whose tokens are kept. "
        "Empty: the student's.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of a local teacher; `auto` is bfloat16 where the hardware is quick at it, else float32.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you say so."
    )

    @field_validator("api")
    @classmethod
    def _without_password(cls, api: str | None) -> str | None:
        # Recipes are copied into runs and shared; nothing secret may stand in one.
        if api and "@" in api.partition("//")[2].partition("/")[0]:
            raise ValueError("a URL without a name or password; the key belongs in $OPENAI_API_KEY")
        return api


class Prune(Section):
    """A student cut out of a larger model."""

    layers: Annotated[int, Field(ge=1, description="How many layers the student keeps.")]
    keep: Literal["first", "spread"] = Field(
        "spread", description="`first`: the first layers. `spread`: evenly spaced, first and last included."
    )
    source: str | None = Field(None, description="Folder or hub id to cut from. Empty: the teacher.")


class Lora(Section):
    """Low-rank adapters instead of full training; merged into the student at the end."""

    rank: Annotated[int, Field(ge=1, description="Rank of the adapters.")] = 16
    alpha: float = Field(32.0, description="Scale of the adapters; alpha / rank multiplies them.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Names of the linear layers that get an adapter.",
    )


class Student(Section):
    """The model that learns: exactly one of `model`, `prune`, `config`."""

    model: str | None = Field(None, description="A pretrained Hugging Face folder or hub id.")
    prune: Prune | None = Field(None, description="Cut the student out of a larger model.")
    config: dict[str, Any] | None = Field(
        None,
        description="A fresh student: keys of the architecture's transformers config that differ from the teacher's.",
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters instead of all weights.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you say so."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        given = [name for name in ("model", "prune", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of model, prune, config (got {', '.join(given) or 'none'})")
        return self


class PromptSource(Section):
    """A file of questions."""

    file: str = Field(
        description="JSONL (chat `messages`, or a `prompt`/`question`/`text` field) or plain text, one a line. "
        "An assistant turn at the end counts as the right answer."
    )
    limit: int | None = Field(None, ge=1, description="Take at most this many, the first ones.")


class Splits(Section):
    """Which questions serve for what; the test items are the evaluation files' and are in no split."""

    tune: float = Field(0.05, ge=0, lt=1, description="Share held out of training for the validation loss.")


class Signal(Section):
    """What is kept of how sure the teacher was."""

    kind: Literal["head+draws", "top-k", "none"] = Field(
        "head+draws",
        description="`head+draws`: the likeliest tokens exactly and unbiased draws of the rest. `top-k`: the "
        "likeliest and the mass of the rest in one bucket (all that APIs give). `none`: the text only.",
    )
    bytes_per_token: int = Field(36, ge=8, description="Disk budget a token, everything included.")


class Teach(Section):
    """How the teacher is asked."""

    system: str | None = Field(None, description="A system prompt put before every question.")
    samples: int = Field(1, ge=1, description="Answers to each question.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of the answers; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    reasoning: bool = Field(True, description="Keep the teacher's reasoning in the lessons, in <think> tags.")
    batch_size: int = Field(64, ge=1, description="Questions a local teacher answers at once.")
    concurrency: int = Field(16, ge=1, description="Requests in flight at an API.")
    signal: Signal = Field(default_factory=Signal, description="What is kept of how sure the teacher was.")


class Filter(Section):
    """Which answers become lessons."""

    verify: Literal["none", "json", "reference"] = Field(
        "none",
        description="`json`: the answer, after its reasoning, is a JSON object. `reference`: it equals the source's "
        "right answer where there is one.",
    )
    required: list[str] = Field([], description="Keys that the JSON object must have (with `verify: json`).")
    truncated: Literal["reject", "keep"] = Field(
        "reject",
        description="Answers that hit `max_new_tokens`: rejected, or kept as lessons without an end-of-turn token "
        "(right for plain text that goes on).",
    )
    decontaminate: list[str] = Field(
        [],
        description="More files whose questions must not be trained on; evaluation files are always among them.",
    )


class Loss(Section):
    """The weights of the training loss's terms."""

    hard: float = Field(0.0, ge=0, description="Cross-entropy with the lesson's own tokens.")
    soft: float = Field(1.0, ge=0, description="Forward KL to the teacher's signals.")

    @model_validator(mode="after")
    def _some(self) -> Loss:
        if self.hard == 0 and self.soft == 0:
            raise ValueError("hard and soft are both 0: nothing would be learned")
        return self


class Distil(Section):
    """How the student trains."""

    loss: Loss = Field(default_factory=Loss, description="The weights of the loss's terms.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Softens both distributions; signals are captured at it, and the soft loss carries T squared.",
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
    checkpoint_every: int = Field(100, ge=1, description="Optimiser steps between checkpoints.")
    validate_every: int = Field(100, ge=1, description="Optimiser steps between validation losses.")
    report_to: list[str] = Field([], description="Trackers that transformers knows: tensorboard, wandb, ...")


class Task(Section):
    """One thing that the models are measured on."""

    file: str | None = Field(
        None, description="JSONL of chat messages with a `reference`. Empty with `score: likelihood`."
    )
    score: Literal["json", "exact", "likelihood"] = Field(
        description="`json`: every field of the JSON answer must be right. `exact`: the answer's text must be equal. "
        "`likelihood`: loss and KL to the teacher on the held-out lessons."
    )
    name: str | None = Field(None, description="What the report calls it. Empty: the file's name.")
    limit: int | None = Field(None, ge=1, description="Use at most this many items.")

    @model_validator(mode="after")
    def _file(self) -> Task:
        if (self.file is None) != (self.score == "likelihood"):
            raise ValueError("a task needs a file, except `score: likelihood`, which takes none")
        return self

    @property
    def title(self) -> str:
        """The task's name in results and report."""
        return self.name or (re.sub(r".*/|\.[a-z.]+$", "", self.file) if self.file else "held-out lessons")


class Evaluate(Section):
    """How the models are measured."""

    tasks: list[Task] = Field([], description="What the models are measured on.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(64, ge=1, description="Questions answered at once.")

    @model_validator(mode="after")
    def _own_titles(self) -> Evaluate:
        titles = [task.title for task in self.tasks]
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two tasks are called {', '.join(sorted(twice))}: give each its own name")
        return self


class Export(Section):
    """What goes beside the model files."""

    license: str = Field("other", description="SPDX name of the student's licence, for its card.")
    system: str | None = Field(
        None, description="System prompt written into the Modelfile. Empty: teach.system."
    )
    context: int = Field(4096, ge=64, description="Context length in the Modelfile and the server commands.")


class Recipe(Section):
    """A whole distillation."""

    name: str = Field(description="The run's name; its folder is runs/NAME.")
    seed: int = Field(0, description="Seeds every random choice.")
    teacher: Teacher = Field(description="The model that is asked.")
    student: Student = Field(description="The model that learns.")
    prompts: list[PromptSource] = Field(description="Where the questions come from.", min_length=1)
    splits: Splits = Field(default_factory=Splits, description="Which questions serve for what.")
    teach: Teach = Field(default_factory=Teach, description="How the teacher is asked.")
    filter: Filter = Field(default_factory=Filter, description="Which answers become lessons.")
    distil: Distil = Field(default_factory=Distil, description="How the student trains.")
    baselines: list[Baseline] = Field(
        [],
        description="Trained or measured beside the student, with the same steps. `before`: the student untrained. "
        "`labels-only`: trained on the sources' own right answers. `answers-only`: trained on the teacher's text "
        "without its signals.",
    )
    quantise: list[Kind] = Field(
        ["Q4_K_M"], description="GGUF files to write; F16 is always written and checked."
    )
    evaluate: Evaluate = Field(default_factory=Evaluate, description="How the models are measured.")
    export: Export = Field(default_factory=Export, description="What goes beside the model files.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError(
                "a name has letters, digits, '.', '_' and '-' only, and starts with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.distil.loss.soft > 0 and self.teach.signal.kind == "none":
            raise ValueError(
                "distil.loss.soft is above 0 but teach.signal.kind is none: there is nothing to match"
            )
        foreign = self.teacher.api is not None or self.teacher.model.endswith(".gguf")
        own = self.student.model or (self.student.prune and self.student.prune.source)
        if foreign and not own:
            raise ValueError(
                "this teacher is no Hugging Face folder, so no student can be cut from it or shaped like it: "
                "give student.model or student.prune.source"
            )
        if self.teacher.api and self.teach.signal.kind == "head+draws":
            raise ValueError(
                "an API gives its top log-probabilities only: set teach.signal.kind to top-k or none"
            )
        return self
