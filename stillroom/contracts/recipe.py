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
    """How many questions are taken of all sources together."""

    count: int | None = Field(
        None,
        ge=1,
        description="Questions in all, drawn at random. Empty: all of them, or, where sources have weights, as many as "
        "the shares allow.",
    )


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
    source: Literal["top_logprobs", "prompt_logprobs"] = Field(
        "top_logprobs",
        description="How an API tells. `top_logprobs`: beside its own answers, while it writes them. `prompt_logprobs`: it "
        "reads every lesson, the sources' own answers and corpora too, as vLLM's server can; its tokenizer must be the "
        "student's.",
    )


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
    report_to: list[str] = Field(
        [],
        description="Trackers that transformers knows: tensorboard (files in distil/tensorboard), wandb, ...",
    )


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
    mix: Mix = Field(default_factory=Mix, description="How many questions are taken of all sources together.")
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
        given = [one.file for one in self.prompts if one.form == "corpus" or one.answers == "given"]
        if given and (self.teach.samples > 1 or self.teach.logged_answers == "ask"):
            raise ValueError(
                f"{', '.join(given)} brings its own text: teach.samples must be 1 and teach.logged_answers `take`"
            )
        soft = self.teacher.api is not None and self.distil.loss.soft > 0
        if soft and given and self.teach.signal.source == "top_logprobs":
            raise ValueError(
                f"this API would not read the text that {', '.join(given)} brings: set teach.signal.source to "
                "prompt_logprobs (vLLM can), or distil.loss.soft to 0"
            )
        if soft and self.distil.temperature != 1:
            raise ValueError(
                "an API's log-probabilities are those of temperature 1: set distil.temperature to 1"
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
