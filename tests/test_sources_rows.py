"""Lists of any length, and what rows bring beside their questions: tools, the answer's form, the steps before."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import tracemalloc
from pathlib import Path

import pytest
from tiny_llama import write_jsonl

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import PromptSource
from stillroom.lessons.prompts.questions import conversation_key, question_key
from stillroom.lessons.prompts.readers import read_rows
from stillroom.lessons.prompts.sources import read_questions

TALK = [{"role": "user", "content": "Refund?"}]
TOOLS = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
FORM = {"type": "json_object"}
BODY = {"model": "big", "messages": TALK}


def test_a_list_on_one_line_is_read_an_item_at_a_time(tmp_path):
    path = tmp_path / "list.json"
    rows = [{"prompt": f"q{number} é", "padding": "x" * 1000} for number in range(4000)]
    path.write_text("\ufeff\n " + json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    tracemalloc.start()
    texts = [row["prompt"] for _, row in read_rows(str(path), path)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts == [row["prompt"] for row in rows]
    assert most < path.stat().st_size / 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"prompt": "a"}, {"prom', "item 2 is not JSON"),
        ('[{"prompt": "a"}, what?]', "item 2 is not JSON"),
        ('[{"prompt": "a"}\n, 3]', "item 2 is not a JSON object"),
        ('[{"prompt": "a"}', "item 2 is not JSON"),
    ],
)
def test_a_damaged_list_is_named_with_its_item(tmp_path, text, words):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        list(read_rows(str(path), path))


def test_a_list_may_have_items_of_any_length_and_line_breaks_anywhere(tmp_path):
    path = tmp_path / "list.json"
    rows = [{"prompt": "x" * 300_000}, {"prompt": "b", "deep": [[], {"c": "]"}]}, {"prompt": "c"}]
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent))
        assert [row for _, row in read_rows(str(path), path)] == rows


@pytest.mark.parametrize(
    ("row", "tools", "form"),
    [
        ({"prompt": "Refund?", "tools": TOOLS, "response_format": FORM}, TOOLS, FORM),
        ({"messages": TALK, "tools": json.dumps(TOOLS), "response_format": json.dumps(FORM)}, TOOLS, FORM),
        ({"prompt": "What is in the shed?", "tools": ["hammer", "saw"]}, None, None),
        (
            {"prompt": "Refund?", "tools": [], "tool_choice": "required", "response_format": "text"},
            None,
            None,
        ),
        ({"request": {**BODY, "tools": TOOLS, "response_format": FORM}}, TOOLS, FORM),
    ],
)
def test_tools_and_the_answers_form_come_with_the_question_where_they_are_in_the_apis_form(
    tmp_path, row, tools, form
):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [row])
    [found] = read_questions(PromptSource(file=str(path)), path)
    assert (found.tools, found.response_format, found.tool_choice) == (tools, form, None)


def test_the_steps_of_a_conversation_with_tools_are_different_requests():
    called = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "refund"}}]}
    told = [{"role": "tool", "content": text} for text in ("done", "refused")]
    steps = [
        TALK,
        [*TALK, called, told[0]],
        [*TALK, called, told[1]],
        [{"role": "system", "content": "x"}, *TALK],
    ]
    assert len({conversation_key(step) for step in steps}) == 4
    assert len({question_key(step) for step in steps}) == 1
    shouted = [{"role": "user", "content": " REFUND? "}]
    assert conversation_key(shouted) == conversation_key(TALK)


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(tmp_path):
    """In a process where neither library can be imported."""
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    code = """
import sys
sys.modules["pyarrow"] = sys.modules["datasets"] = None
from pathlib import Path
from stillroom.contracts.errors import MissingExtra
from stillroom.lessons.prompts.readers import read_rows
for name in (sys.argv[1], "hub:openai/gsm8k:main"):
    try:
        next(read_rows(name, Path(name)))
    except MissingExtra as error:
        print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "q.parquet")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("pip install 'stillroom[data]'") == 2
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    names = " ".join(extras["project"]["optional-dependencies"]["data"])
    assert "pyarrow" in names
    assert "datasets" in names
