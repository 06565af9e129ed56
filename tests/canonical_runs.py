"""The canonical recipes at the size of one core: published data, a teacher that knows it, a small fresh Llama.

The teacher gives a known share of wrong and malformed answers, so that what verification throws out can be held against what
it had to throw out, and the teacher's measured score against the share of right answers that it gave.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from gold_teacher import (
    RIGHT,
    GoldTeacher,
    Turn,
    call_answers,
    code_answers,
    number_answers,
    serving,
)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stillroom.checks import strip_reasoning
from stillroom.contracts.files import read_json, read_lines
from stillroom.contracts.loading import load_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import to_line
from stillroom.contracts.runfolder import Run
from stillroom.evaluation import ModelSpec, Settings, compare_models
from stillroom.evaluation.job import Job as EvaluationJob
from stillroom.evaluation.worker import measure
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.sources import evaluation_sources, read_questions
from stillroom.pipeline import run_pipeline
from stillroom.stages.context import StageContext
from stillroom.stages.evaluate import read_tasks

ROOT = Path(__file__).parents[1]
VERIFICATION = {
    "differs from the right answer",
    "code fails its tests",
    "a tool call that cannot be read",
    "a tool call does not fit its declaration",
    "a quote is not in the source",
    "nothing is quoted",
}
"""Reasons that a check gives; other rejects are repetitions, or touch the evaluation."""

# Mistral's own words for turns and tools.
TEMPLATE = """\
{%- if tools -%}{{ '[AVAILABLE_TOOLS] ' }}{%- for tool in tools -%}{{ tool | tojson + '\\n' }}{%- endfor -%}
{{ '[/AVAILABLE_TOOLS]\\n' }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] -%}
{%- set given = call.function.arguments -%}
{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{ (given if given is string else given | tojson) + '}\\n</tool_call>' }}
{%- endfor -%}
{{ '</s>\\n' }}
{%- elif m.role == 'system' -%}{{ m.content + '\\n' }}
{%- else -%}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n' }}{%- endif -%}
"""


@dataclass(frozen=True)
class Size:
    """How much of a recipe is run."""

    questions: int
    """Of each file."""
    items: int
    """Of an evaluation's file."""
    steps: int
    documents: int = 0
    samples: int = 2
    hidden: int = 128
    layers: int = 2
    length: int = 1024


@dataclass(frozen=True)
class Job:
    """A canonical recipe and what its teacher knows."""

    name: str
    answers: Callable[[Question], dict[str, Turn]] | None
    changes: dict[str, Any] = field(default_factory=dict)


JOBS = [
    Job("document-qa", None, {"teach.max_new_tokens": 96, "evaluate.max_new_tokens": 96}),
    Job("tool-calling", call_answers, {"evaluate.max_new_tokens": 96}),
    Job("code", code_answers, {"evaluate.max_new_tokens": 160}),
    Job("reasoning", number_answers, {"splits.tune": 0.1, "evaluate.max_new_tokens": 160}),
]


def save_student(folder: Path, tokenizer_folder: Path, size: Size) -> Path:
    """A fresh Llama with Mistral's tokenizer and its words for turns."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.unk_token
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_heads(folder: Path, peps: Path, count: int) -> Path:
    """The heads of the first so many PEPs, each a document of its own: a small knowledge base."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(peps, "rt", encoding="utf-8") as file:
        text = file.read()
    for place, found in enumerate(islice(re.finditer(r"^PEP: \d+\n(?:.+\n)+", text, re.M), count)):
        (folder / f"{place:04}.txt").write_text(found[0], encoding="utf-8")
    return folder


def small_recipe(
    job: Job, url: str, student: Path, size: Size, folder: Path, data: Path, more: dict[str, Any]
) -> Recipe:
    """The recipe as it is committed, with as much of it changed as its size wants."""
    path = ROOT / "recipes" / f"{job.name}.yaml"
    whole = load_recipe(path)
    files = [
        {**source.model_dump(exclude_defaults=True), "file": _at(data, source.file)}
        for source in whole.prompts
    ]
    if job.answers is None:
        heads = save_heads(folder / "heads", data / "peps/peps_public_domain.txt.gz", size.documents)
        expand = {"count": size.questions, "passage": 2000, "open_book": False, "similarity": 0.95}
        files = [{"file": str(heads), "form": "documents", "expand": expand}]
    else:
        files = [{**file, "limit": size.questions} for file in files]
    tasks = [
        {**task.model_dump(exclude_defaults=True), "limit": size.items}
        | ({"file": _at(data, task.file)} if task.file else {})
        for task in whole.evaluate.tasks
    ]
    changes = {
        "teacher": {"api": url, "model": "gold"},
        "student": {"model": str(student)},
        "prompts": files,
        "teach.samples": size.samples,
        "teach.signal": {"kind": "none"},
        "distil": {
            "loss": {"hard": 1.0, "soft": 0.0},
            "learning_rate": 2e-3,
            "steps": size.steps,
            "batch_size": 8,
            "micro_batch_size": 8,
            "max_length": size.length,
            "validate_every": size.steps,
            "checkpoint_every": size.steps,
        },
        "evaluate.tasks": tasks,
        **job.changes,
        **more,
    }
    return load_recipe(path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def _at(data: Path, file: str | None) -> str:
    return str(data / str(file).rpartition("shared/data/")[2])


@dataclass(frozen=True)
class Outcome:
    """What came of a run, beside what had to."""

    run: Run
    answers: Counter[str]
    """The teacher's answers to the questions of the run by what they were meant to be."""
    thrown: Counter[str]
    """Those that verification rejected, likewise."""
    given: float
    """Share of right answers that the teacher gave to the evaluation."""
    rows: list[dict[str, Any]]

    def loss(self, model: str) -> float:
        """A model's loss on the lessons held out, nats a token."""
        held_out = "held-out lessons"
        return next(
            row["value"]
            for row in self.rows
            if (row["model"], row["task"], row["metric"]) == (model, held_out, "loss")
        )

    def figure(self, model: str, metric: str = "exact") -> float:
        """A model's figure on the recipe's first task."""
        task = self.run.recipe.evaluate.tasks[0].title
        return next(
            row["value"]
            for row in self.rows
            if (row["model"], row["task"], row["metric"]) == (model, task, metric)
        )


def run_job(job: Job, size: Size, folder: Path, data: Path, *, whole: bool = True, **changes: Any) -> Outcome:
    """A canonical recipe, for real, at this size.

    Args:
        job: the recipe.
        size: how much of it.
        folder: where runs and models go.
        data: the folder of public data.
        whole: every stage; else up to the lessons, and the teacher alone is measured.
        changes: more keys of the recipe, such as quantise.
    """
    student = folder / f"student-{size.hidden}"
    if not student.is_dir():
        save_student(student, data / "tokenizers/mistral", size)
    teacher = GoldTeacher()
    with serving(teacher) as url:
        recipe = small_recipe(job, url, student, size, folder / job.name, data, changes)
        run = Run(folder / "runs" / job.name, recipe, ROOT / "recipes")
        if job.answers is not None:
            for source in (*recipe.prompts, *evaluation_sources(recipe)):
                teacher.learn(read_questions(source, run.locate(source.file)), job.answers)
        run.save_recipe()
        if whole:
            run_pipeline(run, Progress())
            rows = read_json(run.folder("evaluate") / "results.json")
        else:
            run_pipeline(run, Progress(), until="filter")
            rows = teacher_rows(run, url)
    return outcome(run, teacher, rows)


def teacher_rows(run: Run, url: str) -> list[dict[str, Any]]:
    """The teacher's figures on the run's tasks, measured in this process."""
    tasks = read_tasks(StageContext(run, "evaluate"))
    job = EvaluationJob(ModelSpec("teacher", "api", "gold", api=url), tasks, Settings(concurrency=8))
    return [to_line(row) for row in compare_models([measure(job, lambda count, note: None)])]


def outcome(run: Run, teacher: GoldTeacher, rows: list[dict[str, Any]]) -> Outcome:
    """What came of a run, beside what its teacher did."""
    meant = {_name(line["question"], line["turn"]): line["kind"] for line in teacher.log}
    rejected = {
        _name(*_turns(line["messages"]))
        for line in read_lines(run.folder("filter") / "rejected.jsonl")
        if line["reason"] in VERIFICATION
    }
    names = {_name(*_turns(line["messages"])) for line in read_lines(run.folder("teach") / "answers.jsonl")}
    asked = [line["kind"] == RIGHT for line in teacher.log if line["temperature"] == 0]
    return Outcome(
        run,
        Counter(meant[name] for name in names),
        Counter(meant[name] for name in names & rejected),
        sum(asked) / max(len(asked), 1),
        rows,
    )


def _turns(messages: list[dict[str, Any]]) -> tuple[str, Turn]:
    *before, last = messages
    return str(before[-1]["content"]), last


def _name(question: str, turn: Turn) -> str:
    """What an answer is recognised by, as the teacher gave it or as a lesson has it."""
    calls = [call["function"] for call in turn.get("tool_calls") or ()]
    return json.dumps([question, strip_reasoning(turn.get("content") or ""), calls], sort_keys=True)
