"""How the teacher is asked, and what is kept of how sure it was."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.section import Section


class Signal(Section):
    """What is kept of how sure the teacher was."""

    kind: Literal["head+draws", "top-k", "hidden", "none"] = Field(
        "head+draws",
        description="`head+draws`: the likeliest tokens exactly and unbiased draws of the rest. `top-k`: the "
        "likeliest and the mass of the rest in one bucket (all that APIs give). `hidden`: the last hidden states and the "
        "head, exact, two bytes a number and token (a transformers teacher on this machine, short books). `none`: the "
        "text only.",
    )
    bytes_per_token: int = Field(
        36, ge=8, description="Disk budget a token, everything included; not for `kind: hidden`."
    )
    source: Literal["top_logprobs", "prompt_logprobs"] = Field(
        "top_logprobs",
        description="How an API tells. `top_logprobs`: beside its own answers, while it writes them. `prompt_logprobs`: it "
        "reads every lesson, the sources' own answers and corpora too, as vLLM's server can; its tokenizer must be the "
        "student's.",
    )

    @model_validator(mode="after")
    def _budget_applies(self) -> Signal:
        if self.kind == "hidden" and "bytes_per_token" in self.model_fields_set:
            raise ValueError(
                "bytes_per_token does not apply to kind hidden, whose states take two bytes a number: leave it out"
            )
        return self


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
    requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests a minute at an API, beside the limits that its headers tell."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Most tokens a minute at an API, questions and answers together."
    )
    timeout: float = Field(600.0, gt=0, description="Seconds for one answer of an API.")
    max_cost: float | None = Field(
        None,
        gt=0,
        description="US dollars that the answers of this run may cost, earlier ones included; at the limit the stage "
        "stops, and goes on once it is raised.",
    )
    batch_endpoint: bool = Field(
        False, description="Ask through the API's batch endpoint: cheaper at most providers, within a day."
    )
    parameters: dict[str, Any] = Field(
        {},
        description="More keys of an API's request body, such as response_format, tools or reasoning_effort; null takes "
        "a key of ours out, such as temperature.",
    )
    logged_answers: Literal["take", "ask"] = Field(
        "take",
        description="Answers that logs among the prompts hold already. `take`: each is the first answer to its question and "
        "is not asked for again. `ask`: the teacher answers all the same.",
    )
    signal: Signal = Field(default_factory=Signal, description="What is kept of how sure the teacher was.")
