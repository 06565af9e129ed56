"""Which answers become lessons."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stillroom.contracts.recipe.models import Teacher
from stillroom.contracts.recipe.section import Section


class Filter(Section):
    """Which answers become lessons."""

    verify: Literal[
        "none",
        "source",
        "json",
        "reference",
        "number",
        "maths",
        "choice",
        "pattern",
        "tools",
        "quotes",
        "code",
        "own",
    ] = Field(
        "none",
        description="`source`: each question by the check that its source's form has (GSM8K by numbers, HumanEval by "
        "running code, ...), else by its right answer. `json`: the answer, after its reasoning, is a JSON object. "
        "`reference`: it equals the source's right answer where there is one; so do its final "
        "`number`, its result in `maths` (expressions, sets, intervals) or its letter (`choice`). `pattern`: it matches "
        "filter.pattern. `tools`: its tool calls fit filter.tools, and the right calls where the source has them. "
        "`quotes`: what it quotes stands in the question. `code`: its Python passes the source's tests, run in a sandbox. "
        "`own`: a function of yours, filter.checker.",
    )
    required: list[str] = Field([], description="Keys that the JSON object must have (with `verify: json`).")
    json_schema: str | None = Field(
        None, description="File with the JSON Schema that the object must fit (with `verify: json`)."
    )
    pattern: str | None = Field(
        None,
        description="Regular expression that the whole answer must match, its reasoning left out (with `verify: pattern`).",
    )
    tools: str | None = Field(
        None,
        description="JSON file with the list of tools' declarations, OpenAI's form (with `verify: tools`); a question that "
        "declares its own is held to those.",
    )
    checker: str | None = Field(
        None,
        description="FILE.py:FUNCTION, called with (answer, right answer or None, messages before); it returns True, or "
        "False or the reason why not (with `verify: own`).",
    )
    trusted: bool = Field(
        False,
        description="Call filter.checker in this process instead of the sandbox, and run answers' code even where the "
        "system cannot confine it.",
    )
    keep: int | None = Field(
        None,
        ge=1,
        description="At most this many distinct lessons a question: the first that pass, or the best by judge or contrast.",
    )
    agreement: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a question's samples that must come to the same answer where nothing else checks them; "
        "those that say otherwise are rejected. 0: not asked.",
    )
    facts: Literal["none", "flag", "drop", "review"] = Field(
        "none",
        description="For factual domains: names, dates and numbers of an answer are compared with the question's document, "
        "with its other samples, and with how sure the teacher was. Where they are in doubt, `flag` keeps the lesson and "
        "writes it to review.jsonl as well, `drop` rejects it, `review` writes it to review.jsonl only.",
    )
    reviewed: str | None = Field(
        None,
        description="A copy of review.jsonl without the lines that are wrong: what is in it becomes lessons.",
    )
    judge: Teacher | None = Field(
        None,
        description="A model that compares a question's answers two by two, in both orders, where no right answer settles "
        "it: the best come first, and pairs of a better and a worse one teach a preference.",
    )
    contrast: str | None = Field(
        None,
        description="Folder or hub id of a small model: of a question's answers those come first that the teacher finds "
        "likelier than it by the most, which is what the teacher alone knows.",
    )
    student_sample: int = Field(
        0,
        ge=0,
        description="Checked questions that the student is asked too, before its training, to say whether there is "
        "anything to learn from this teacher. 0: none.",
    )
    near_duplicates: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Reject lessons whose text is at least this similar to an earlier one (Jaccard similarity, such as "
        "0.8). Empty: only equal ones.",
    )
    min_characters: int | None = Field(None, ge=1, description="Shorter answers are rejected.")
    max_characters: int | None = Field(None, ge=1, description="Longer answers are rejected.")
    language: str | None = Field(
        None, description="ISO 639-1 code, such as en: answers clearly in another language are rejected."
    )
    truncated: Literal["reject", "keep"] = Field(
        "reject",
        description="Answers that hit `max_new_tokens`: rejected, or kept as lessons without an end-of-turn token "
        "(right for plain text that goes on).",
    )
    decontaminate: list[str] = Field(
        [],
        description="More files whose questions must not be trained on; evaluation files are always among them.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Filter:
        needed = {"pattern": "pattern", "own": "checker"}.get(self.verify)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"verify is {self.verify}: give {needed} as well")
        return self

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
        return pattern
