"""Where the questions come from, how many, and which serve for what."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from stillroom.contracts.recipe.section import Section

Method = Literal["seeds", "harder", "personas", "topics", "edge-cases", "failures", "documents"]
Form = Literal[
    "auto",
    "table",
    "log",
    "documents",
    "corpus",
    "gsm8k",
    "choice",
    "humaneval",
    "mbpp",
    "math",
    "bfcl",
    "loong",
    "squad",
]


EXPANDED = ", expanded"
"""Follows a source's title where the teacher invented the questions."""


class Expand(Section):
    """More questions, invented by the teacher."""

    count: int = Field(
        ge=1, description="How many new questions; fewer if the teacher has nothing new to say."
    )
    methods: list[Method] = Field(
        [],
        description="Taken in turn. `seeds`: new ones of the same kind. `harder`: one made more demanding. `personas`: "
        "asked by different people. `topics`: from a tree of topics. `edge-cases`: rare, awkward, out of scope. "
        "`failures`: like those that the student got wrong. `documents`: about a passage, with a quote that must "
        "stand in it. Empty: the first five; for documents, `documents`.",
    )
    task: str | None = Field(None, description="File that describes the job; every request holds it.")
    failures: str | None = Field(
        None,
        description="A run's evaluate/samples.jsonl, whose wrong answers of the student `failures` shows.",
    )
    candidates: int = Field(
        5, ge=1, le=50, description="Questions asked for in one request, each with its probability."
    )
    similarity: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="A question as alike as this to an earlier one (Jaccard similarity of five-letter runs) is dropped.",
    )
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of the inventions.")
    max_new_tokens: int = Field(2048, ge=16, description="Longest reply of the inventing teacher, in tokens.")
    passage: int = Field(2000, ge=200, description="Length of a document's passages, in characters.")
    open_book: bool = Field(
        True, description="Questions about a passage are asked with the passage before them."
    )


class PromptSource(Section):
    """A file of questions."""

    file: str = Field(
        description="JSONL or JSON, CSV, Parquet or plain text (one question a line), also as .gz, a zip file or a folder; "
        "`hub:NAME`, `hub:NAME:CONFIG:SPLIT` for a data set of a hub. Columns are guessed and said; benchmark files and "
        "logs of an API are recognised. An assistant turn at the end counts as the right answer."
    )
    limit: int | None = Field(None, ge=1, description="Take at most this many, the first ones.")
    form: Form = Field(
        "auto",
        description="`auto` recognises benchmarks and logs; a name insists on it. `table`: only columns. `log`: requests "
        "and answers of an API. `documents`: texts to ask about, for `expand`. `corpus`: plain texts that the student goes "
        "on pretraining with, cut into blocks of distil.max_length tokens; nothing is asked. `choice`: MMLU, ARC and their "
        "like.",
    )
    answers: Literal["teacher", "given"] = Field(
        "teacher",
        description="Who answers. `teacher`: it is asked. `given`: the source's own worked solution, or else its right "
        "answer, is the lesson, and the teacher only says what it thinks of each of its tokens.",
    )
    columns: dict[Literal["question", "answer", "system"], str] = Field(
        {},
        description="Names of the columns, where guessing is not enough: {question: body, answer: intent}.",
    )
    pattern: str | None = Field(
        None, description="Of a folder or zip file, only the files that match, such as test/*.csv."
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="Share of the mixture relative to other sources (1 where only others have one).",
    )
    stratify: str | None = Field(
        None,
        description="A column (or `file`) of whose every value the same number of questions is taken, as far as they "
        "go, where the source gives only some of its questions.",
    )
    expand: Expand | None = Field(None, description="More questions like these, invented by the teacher.")

    @property
    def title(self) -> str:
        """What a prompt's `source` says: the file's name, or that of a hub's data set."""
        return self.file if self.file.startswith("hub:") else PurePath(self.file).name

    @model_validator(mode="after")
    def _makes_sense(self) -> PromptSource:
        if self.columns and "question" not in self.columns:
            raise ValueError("columns does not say which one is the question")
        if self.form == "documents" and self.expand is None:
            raise ValueError(
                "documents hold no questions: add expand: {count: ...}, and the teacher asks about them"
            )
        if self.form == "corpus" and (self.expand or self.columns or self.stratify):
            raise ValueError("a corpus holds no questions: leave expand, columns and stratify out")
        methods = self.expand.methods if self.expand else []
        if self.form != "documents" and "documents" in methods:
            raise ValueError("the method documents needs form: documents")
        if self.form == "documents" and set(methods) - {"documents"}:
            raise ValueError(
                "documents are expanded by the method documents only; give seeds as another source"
            )
        if self.expand and ("failures" in methods) != (self.expand.failures is not None):
            raise ValueError("the method failures and the file expand.failures belong together")
        return self


class Mix(Section):
    """How many questions are taken of all sources together, and how their diversity is measured."""

    count: int | None = Field(
        None,
        ge=1,
        description="Questions in all, drawn at random. Empty: all of them, or, where sources have weights, as many as "
        "the shares allow.",
    )
    embedder: str | None = Field(
        None,
        description="A sentence encoder (Hugging Face folder or hub id), by whose vectors the questions' diversity is "
        "measured too.",
    )


class Splits(Section):
    """Which questions serve for what; the test items are the evaluation files' and are in no split."""

    tune: float = Field(0.05, ge=0, lt=1, description="Share held out of training for the validation loss.")
    calibrate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share set apart for the cascade (route): no model is taught or measured on it. Some "
        "hundreds are needed.",
    )

    @model_validator(mode="after")
    def _leave_some(self) -> Splits:
        if self.tune + self.calibrate >= 1:
            raise ValueError("splits.tune and splits.calibrate leave no question to train on")
        return self
