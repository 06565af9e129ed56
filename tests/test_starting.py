"""A description and a few examples are enough to start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llama import write_jsonl

from stillroom.contracts.errors import DataError, UserError
from stillroom.contracts.loading import load_recipe
from stillroom.lessons.prompts.starting import start_from_examples

EXAMPLES = [
    {"message": f"Where is parcel {n}?", "answer": {"intent": "tracking", "parcel": n}} for n in range(12)
]
TASK = 'Read a customer\'s message: "what is wanted".\n\n- answer with JSON: {"intent": ...}\n# NAME is no heading\n'


def start(folder: Path, examples: list[dict], **settings) -> list[str]:
    (folder / "task.md").write_text(TASK)
    path = write_jsonl(folder / "few.jsonl", examples)
    chosen = {"teacher": "big", "api": None, "student": "small", "count": 300} | settings
    return start_from_examples(folder / "mine", task=folder / "task.md", examples=path, **chosen)


def test_examples_with_json_answers_become_a_task_that_is_scored_field_by_field(tmp_path):
    assert start(tmp_path, EXAMPLES) == []
    recipe = load_recipe(tmp_path / "mine")
    [source] = recipe.prompts
    assert source.expand.count == 300
    assert recipe.teach.system == TASK.strip()
    assert (tmp_path / "mine" / source.expand.task).read_text() == TASK
    assert [(task.file, task.score) for task in recipe.evaluate.tasks] == [
        ("data/examples.jsonl", "json"),
        (None, "likelihood"),
    ]
    assert (recipe.filter.verify, recipe.filter.required) == ("json", ["intent", "parcel"])
    assert recipe.teacher.model == "big"
    assert recipe.student.model == "small"
    lines = [json.loads(line) for line in (tmp_path / "mine/data/examples.jsonl").read_text().splitlines()]
    assert lines[3]["messages"] == [{"role": "user", "content": "Where is parcel 3?"}]
    assert json.loads(lines[3]["reference"]) == {"intent": "tracking", "parcel": 3}


def test_examples_with_tools_keep_them_and_have_calls_checked(tmp_path):
    tools = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "track", "arguments": '{"parcel": 3}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    asked = [{"role": "user", "content": "Where is parcel 3?"}]
    start(tmp_path, [{"messages": [*asked, turn], "tools": tools}] * 10)
    recipe = load_recipe(tmp_path / "mine")
    assert (recipe.filter.verify, recipe.evaluate.tasks[0].score) == ("tools", "exact")
    line = json.loads((tmp_path / "mine/data/examples.jsonl").read_text().splitlines()[0])
    assert line["tools"] == tools
    assert line["reference"] == '<tool_call>\n{"name": "track", "arguments": {"parcel": 3}}\n</tool_call>'


def test_examples_with_text_answers_are_compared_to_the_letter(tmp_path):
    start(tmp_path, [{"prompt": f"{n}", "answer": "yes"} for n in range(10)])
    recipe = load_recipe(tmp_path / "mine")
    assert recipe.evaluate.tasks[0].score == "exact"
    assert recipe.filter.verify == "none"


def test_examples_without_answers_are_kept_out_of_training_all_the_same(tmp_path):
    [note] = start(tmp_path, [{"prompt": f"{n}"} for n in range(10)])
    assert "likelihood only" in note
    recipe = load_recipe(tmp_path / "mine")
    assert recipe.filter.decontaminate == ["data/examples.jsonl"]
    assert [task.score for task in recipe.evaluate.tasks] == ["likelihood"]


def test_a_teacher_behind_an_api_gives_text_only(tmp_path):
    start(tmp_path, EXAMPLES, api="http://127.0.0.1:11434/v1")
    recipe = load_recipe(tmp_path / "mine")
    assert recipe.teacher.api == "http://127.0.0.1:11434/v1"
    assert (recipe.teach.signal.kind, recipe.distil.loss.soft, recipe.distil.loss.hard) == ("none", 0.0, 1.0)


def test_few_examples_are_noted_and_too_few_refused(tmp_path):
    [note] = start(tmp_path, EXAMPLES[:4])
    assert "ten to a hundred" in note
    with pytest.raises(DataError, match="too few examples"):
        start(tmp_path, EXAMPLES[:2])
    with pytest.raises(UserError, match="exists"):
        start(tmp_path, EXAMPLES)


def test_the_command_says_what_is_missing_and_leaves_nothing_half_made(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "stillroom", "init", "mine", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    write_jsonl(tmp_path / "few.jsonl", EXAMPLES)
    alone = run("--examples", "few.jsonl")
    assert alone.returncode == 2
    assert "--task and --examples together" in alone.stderr
    missing = run("--examples", "few.jsonl", "--task", "task.md")
    assert missing.returncode == 2
    assert "task.md does not exist" in missing.stderr
    (tmp_path / "task.md").write_text(TASK)
    made = run(
        "--examples",
        "few.jsonl",
        "--task",
        "task.md",
        "--count",
        "50",
        "--student",
        "embedded:tickets-teacher",
    )
    assert made.returncode == 0, made.stderr
    assert "now: stillroom plan mine" in made.stdout
    assert load_recipe(tmp_path / "mine").prompts[0].expand.count == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.jsonl", "mine", "task.md"]
