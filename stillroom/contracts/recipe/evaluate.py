"""What the models are measured on, and how."""

from __future__ import annotations

import re
from typing import Literal, get_args

from pydantic import Field, model_validator

from stillroom.contracts.recipe.export import Kind
from stillroom.contracts.recipe.models import Teacher
from stillroom.contracts.recipe.prompts import Form
from stillroom.contracts.recipe.section import Section

Score = Literal[
    "json",
    "exact",
    "number",
    "maths",
    "choice",
    "likeliest",
    "tools",
    "code",
    "quotes",
    "judge",
    "likelihood",
    "perplexity",
]


ProbeName = Literal[
    "facts", "chains", "outside", "rephrased", "format", "rare", "abstention", "refusals", "quantised"
]


class Task(Section):
    """One thing that the models are measured on."""

    file: str | None = Field(
        None,
        description="Questions with right answers, in any form that prompts are read in, published benchmarks among them. "
        "Empty: what this run held out of training (splits.tune): its lessons with `score: likelihood`, else its "
        "questions.",
    )
    score: Score = Field(
        description="How an answer is held against the right one; the names are those of filter.verify. `json`: every field "
        "of the JSON answer must be right. `exact`: the answer's text must be equal. `number`, `maths`: its final number, "
        "its result in mathematics. `choice`: its letter. "
        "`likeliest`: nothing is written; of a multiple choice's options the one that the model finds likeliest must be the "
        "right one. `tools`: its calls of tools. `code`: its Python must pass the "
        "question's tests, run in a sandbox. `quotes`: it quotes, its quotes stand in the question's document, and the "
        "right answer's words stand in it. `judge`: a model says whether it is better or worse than the teacher's. "
        "`likelihood`: loss and KL to the teacher on the held-out lessons. `perplexity`: of a file of texts, with loss and "
        "KL.",
    )
    form: Form = Field(
        "auto", description="Of the file, as for a source of prompts: `auto` recognises published benchmarks."
    )
    pattern: str | None = Field(
        None, description="Of a folder or zip file, only the files that match, such as test/*.csv."
    )
    name: str | None = Field(None, description="What the report calls it. Empty: the file's name.")
    limit: int | None = Field(None, ge=1, description="Use at most this many items.")
    samples: int = Field(
        1,
        ge=1,
        description="Answers to each question. Several are drawn at `temperature`, and `pass@k` says how often one of k is "
        "right; one is the likeliest at every token.",
    )
    temperature: float = Field(0.8, gt=0, description="Sampling temperature of several answers.")
    teacher: bool = Field(
        True,
        description="Measure the teacher on it too. An API that does not tell the log-probabilities of given texts, as "
        "vLLM's server does, can be measured on neither `likeliest` nor `perplexity`.",
    )
    judge: Teacher | None = Field(
        None,
        description="With `score: judge`, the model that compares each answer with the teacher's, in both orders.",
    )
    options: Literal["letter", "text"] = Field(
        "letter",
        description="What `score: likeliest` ranks: the options' letters, after the question with its options, or their "
        "words, after the bare question.",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Task:
        if self.file is not None and self.score == "likelihood":
            raise ValueError(
                "a task with `score: likelihood` takes no file: it reads the lessons held out of training"
            )
        if self.score == "perplexity" and (self.file is None or self.form != "auto"):
            raise ValueError("a task with `score: perplexity` takes a file of texts, and no form")
        if self.samples > 1 and (not self.asks or self.score == "likeliest"):
            raise ValueError(f"a task with `score: {self.score}` writes no answers: leave samples out")
        if (self.score == "judge") != (self.judge is not None):
            raise ValueError("`score: judge` and `judge: {model: ...}` belong together in a task")
        if self.score == "judge" and not self.teacher:
            raise ValueError("a judge compares with the teacher: leave teacher out")
        if self.score == "judge" and self.samples > 1:
            raise ValueError("a judge compares one answer with one: leave samples out")
        if self.form in ("corpus", "documents"):
            raise ValueError(f"{self.form} hold no questions to be measured on")
        return self

    @property
    def asks(self) -> bool:
        """Whether it is made of questions, not of texts or lessons to be predicted."""
        return self.score not in ("likelihood", "perplexity")

    @property
    def reads(self) -> bool:
        """Whether a model tells how likely it finds questions' options or texts, and writes nothing."""
        return self.score in ("likeliest", "perplexity")

    @property
    def answered_once(self) -> bool:
        """Whether each of its questions gets one written answer that is right or wrong, as those that probes are made from
        do."""
        return self.asks and self.score not in ("likeliest", "judge") and self.samples == 1

    @property
    def title(self) -> str:
        """The task's name in results and report."""
        if self.name or self.file:
            return self.name or re.sub(r".*/|\.[a-z.]+$", "", self.file or "")
        return "held-out lessons" if self.score == "likelihood" else "held-out questions"


class Chains(Section):
    """Questions of the run's own kind that take more steps than the lessons do, for the probe `chains`."""

    file: str = Field(
        description="JSONL as a task's file is, judged as the first task with written answers; every line also has "
        "`steps`, how many its question takes."
    )
    trained: int = Field(ge=1, description="The most steps that a question of the lessons takes.")


class Evaluate(Section):
    """How the models are measured."""

    tasks: list[Task] = Field([], description="What the models are measured on.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(64, ge=1, description="Questions answered at once.")
    teacher_files: list[Kind] = Field(
        [],
        description="Kinds of GGUF file, such as [Q4_K_M, Q2_K], that the teacher is quantised to and measured as: whether "
        "that would do instead of a student. The teacher must be a Hugging Face folder.",
    )

    probes: list[ProbeName] | Literal["all"] = Field(
        [],
        description="What is lost beyond right and wrong, found out with questions made from the first task with written "
        "answers, and from the lessons: `all`, or some of `facts` (facts in a question against recall), `chains` (steps "
        "that can be followed), `outside` (questions outside the task), `rephrased`, `format` (answers in the task's form), "
        "`rare` (answers rare among the lessons), `abstention`, `refusals`, `quantised` (what quantising costs baselines). "
        "See docs/evaluation.md.",
    )

    chains: Chains | None = Field(
        None,
        description="A file of longer questions for the probe `chains`. Empty: it asks made-up ones, which have nothing "
        "to do with the lessons.",
    )

    @property
    def files(self) -> list[str]:
        """Every file of questions or texts that the models are measured on."""
        chained = [self.chains.file] if self.chains else []
        return [task.file for task in self.tasks if task.file] + chained

    @property
    def wanted_probes(self) -> list[ProbeName]:
        """The probes by name."""
        return list(get_args(ProbeName)) if self.probes == "all" else list(dict.fromkeys(self.probes))

    @model_validator(mode="after")
    def _has_questions(self) -> Evaluate:
        if self.probes and not any(task.answered_once for task in self.tasks):
            raise ValueError(
                "evaluate.probes are made from a task with right answers that is answered once, in writing: name one, or "
                "leave probes out"
            )
        if self.chains and "chains" not in self.wanted_probes:
            raise ValueError(
                "evaluate.chains is read by the probe of this name: add `chains` to evaluate.probes"
            )
        return self

    @model_validator(mode="after")
    def _own_titles(self) -> Evaluate:
        titles = [task.title for task in self.tasks]
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two tasks are called {', '.join(sorted(twice))}: give each its own name")
        return self
