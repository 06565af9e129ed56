"""Who teaches and who learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stillroom.contracts.recipe.section import Section


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
    dtype: Literal["auto", "float32", "bfloat16", "float16", "8-bit", "4-bit"] = Field(
        "auto",
        description="Number format of a local teacher; `auto` is bfloat16 where the hardware is quick at it, else float32. "
        "`8-bit` and `4-bit` quantise it while it is loaded and need bitsandbytes.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you say so."
    )
    accept_terms: bool = Field(
        False,
        description="You have read the terms of a teacher that forbid training other models with its answers, and "
        "this use is allowed to you all the same.",
    )
    prices: str | None = Field(
        None,
        description="YAML file of prices and terms in the form of stillroom/embedded/teachers.yaml, whose entries come "
        "before the built-in ones.",
    )

    tokens: Literal["student", "own"] = Field(
        "student",
        description="`own`: its tokenizer is another than the student's, and what it thinks is carried over to the "
        "student's tokens wherever a token of both begins at the same place (a local teacher, heard through a book).",
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="Its share of the mixture, relative to the others, where there are several teachers.",
    )
    domains: list[str] = Field(
        [],
        description="Names of the prompts' files, where there are several teachers: of their lessons only those are heard "
        "that name them, of all others those that name none.",
    )

    @field_validator("api")
    @classmethod
    def _without_password(cls, api: str | None) -> str | None:
        # Recipes are copied into runs and shared; nothing secret may stand in one.
        if api and "@" in api.partition("//")[2].partition("/")[0]:
            raise ValueError("a URL without a name or password; the key belongs in $OPENAI_API_KEY")
        return api


class Prune(Section):
    """A student cut out of a larger model: fewer layers, narrower ones, or both. What is not named stays whole."""

    layers: int | None = Field(None, ge=1, description="How many layers the student keeps.")
    keep: Literal["first", "spread", "influence"] = Field(
        "spread",
        description="`first`: the first layers. `spread`: evenly spaced, first and last included. `influence`: those that "
        "turn the hidden state most on the lessons.",
    )
    hidden: int | None = Field(
        None,
        ge=1,
        description="Width of the hidden state that is kept: the channels that the lessons drive most. K-quants want a "
        "multiple of 256, and of 32 at least.",
    )
    mlp: int | None = Field(
        None, ge=1, description="Neurons of each layer's MLP that are kept, chosen in the same way."
    )
    heads: int | None = Field(
        None,
        ge=1,
        description="Query heads of each layer that are kept, with their key-value heads; a head keeps its size.",
    )
    source: str | None = Field(None, description="Folder or hub id to cut from. Empty: the teacher.")

    @property
    def ranks(self) -> bool:
        """Whether parts are chosen by what they do, for which lessons must be read."""
        return self.keep == "influence" or any((self.hidden, self.mlp, self.heads))

    @model_validator(mode="after")
    def _some(self) -> Prune:
        if not any((self.layers, self.hidden, self.mlp, self.heads)):
            raise ValueError("give at least one of layers, hidden, mlp, heads: nothing would be cut")
        return self


class Lora(Section):
    """Low-rank adapters instead of full training; merged into the student at the end."""

    rank: Annotated[int, Field(ge=1, description="Rank of the adapters.")] = 16
    alpha: float = Field(32.0, description="Scale of the adapters; alpha / rank multiplies them.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Names of the linear layers that get an adapter.",
    )
    dora: bool = Field(
        False,
        description="DoRA: direction and length of the weights learn apart; slower, and often a little better.",
    )
    base: Literal["float32", "bfloat16", "8-bit", "4-bit"] = Field(
        "float32",
        description="Number format of the frozen weights while adapters train. `4-bit` is QLoRA; it and `8-bit` need "
        "bitsandbytes. In the end adapters are merged into the weights as they were before they were rounded.",
    )

    @model_validator(mode="after")
    def _head(self) -> Lora:
        if self.dora and "lm_head" in self.targets:
            raise ValueError(
                "dora cannot be on lm_head, which the fused loss reads itself: take lm_head out of targets"
            )
        return self


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
        if self.lora and self.lora.base in ("8-bit", "4-bit") and not self.model:
            raise ValueError(
                "weights are rounded while they are loaded, so lora.base 8-bit or 4-bit wants a student.model; "
                "a pruned or fresh student takes bfloat16"
            )
        return self
