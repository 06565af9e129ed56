"""Conversations of several turns, with reasoning and tool calls, from an answer to the tokens that are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tiny_llama import save_tiny, train_tokenizer, write_jsonl

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Lesson, Prompt, from_line, to_line
from stillroom.contracts.runfolder import Run
from stillroom.evaluation import EvaluationTask, Item, ModelSpec, load_task
from stillroom.evaluation.answering import answer_tasks
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group
from stillroom.lessons.teach.answers import lesson_messages
from stillroom.models.api import ApiModel
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Rendered, Renderer
from stillroom.pipeline import run_pipeline
from stillroom.signals import Book
from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate

# As Qwen's: earlier turns lose their reasoning, the turns after the last question keep it; tool calls in tags; what tools
# say comes as the user's turn.
QWEN_LIKE = """\
{%- set ns = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- if tools -%}
{{ '<|im_start|>system\\n<tools>\\n' }}{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor -%}
{{ '</tools><|im_end|>\\n' }}
{%- endif -%}
{%- for m in messages -%}
{%- set content = m.content or '' -%}
{%- if m.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif m.role == 'assistant' -%}
{%- set said = content.split('</think>')[-1].lstrip('\\n') -%}
{{ '<|im_start|>assistant\\n' }}
{%- if '</think>' in content and loop.index0 > ns.last -%}
{{ '<think>\\n' + content.split('</think>')[0].split('<think>')[-1].strip('\\n') + '\\n</think>\\n\\n' + said }}
{%- else -%}{{ said }}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{%- set given = call.function.arguments -%}
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{ (given if given is string else given | tojson) + '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"town": "Bern"}'}}


def qwen_like() -> Renderer:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = QWEN_LIKE
    return Renderer(tokenizer)


def embedded() -> Renderer:
    return Renderer.load(str(files("stillroom") / "embedded/tickets-teacher"))


@pytest.fixture(params=[qwen_like, embedded], scope="module")
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return request.param()


def turns(*contents: str) -> list[dict[str, Any]]:
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return [{"role": "system", "content": "Be brief."}, *said]


def learned(renderer: Renderer, row: Rendered) -> str:
    return renderer.tokenizer.decode([i for i, on in zip(row.ids, row.mask, strict=True) if on])


def lesson_of(messages: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The conversation as the filter hands it on."""
    prompt = Prompt(messages[:-1], "file")
    answer = Answer("key", prompt.id, 0, lesson_messages(messages, reasoning=True), "stop")
    (one,) = Filtering(Filter(**settings), Path(), HeldOut()).sift([Group(prompt, [answer])])
    (lesson,) = one.lessons
    return lesson.messages


def test_of_many_turns_the_last_answer_is_learned_and_the_earlier_ones_are_shown(renderer: Renderer) -> None:
    messages = lesson_of(turns("my first order", "the first answer", "and the second?", "the last answer"))
    row = renderer.lesson(messages)
    text = renderer.tokenizer.decode(row.ids)
    assert learned(renderer, row) == "the last answer<|im_end|>"
    assert text.index("the first answer") < text.index("and the second?") < text.index("the last answer")
    assert row.ids[: len(prompt := renderer.prompt_ids(messages[:-1]))] == prompt
    assert row.mask.index(True) == len(prompt)


def test_the_batch_predicts_the_last_answer_and_its_end_and_nothing_else(renderer: Renderer) -> None:
    rows = [
        renderer.lesson(lesson_of(turns("one", "first", "two", "the last answer"))),
        renderer.lesson(lesson_of(turns("hello", "an answer"))),
    ]
    batch = collate([TrainingRow(np.array(row.ids), np.array(row.mask)) for row in rows])
    flat = batch["input_ids"].flatten()
    assert renderer.tokenizer.decode(batch["labels"]) == "the last answer<|im_end|>an answer<|im_end|>"
    assert flat[batch["positions"] + 1].tolist() == batch["labels"].tolist()


def test_earlier_reasoning_is_stripped_where_the_template_does_so_and_the_last_is_learned() -> None:
    renderer = qwen_like()
    messages = turns("one", "<think>\nearly thought\n</think>\n\nfirst", "two", "second")
    messages[-1]["reasoning_content"] = "late thought"
    row = renderer.lesson(lesson_of(messages))
    text = renderer.tokenizer.decode(row.ids)
    assert "early thought" not in text
    assert "first" in text
    assert text.count("<think>") == 1
    assert "late thought" in learned(renderer, row)
    assert learned(renderer, row).endswith("second<|im_end|>")
    # The student reads at work what it read in training.
    assert row.ids[: row.mask.index(True)] == renderer.prompt_ids(messages[:-1])


def test_a_tool_call_is_learned_and_what_the_tool_said_is_not() -> None:
    renderer = qwen_like()
    asked = turns("Weather in Bern?")
    call = [*asked, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert "weather" in learned(renderer, renderer.lesson(lesson_of(call)))
    assert learned(renderer, renderer.lesson(lesson_of(call))).endswith("</tool_call><|im_end|>")
    told = [
        *call,
        {"role": "tool", "content": "12 degrees, rain"},
        {"role": "assistant", "content": "Take a coat."},
    ]
    row = renderer.lesson(lesson_of(told))
    text = renderer.tokenizer.decode(row.ids)
    assert learned(renderer, row) == "Take a coat.<|im_end|>"
    assert text.index("<tool_call>") < text.index("12 degrees") < text.index("Take a coat.")


# Tools that a question declares.


def sifted(group: Group) -> Lesson:
    ((lesson,),) = (one.lessons for one in Filtering(Filter(), Path(), HeldOut()).sift([group]))
    return lesson


def test_a_lesson_has_its_questions_tools_beside_its_messages() -> None:
    messages = [*turns("Weather in Bern?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    prompt = Prompt(messages[:-1], "file")
    answer = Answer("key", prompt.id, 0, messages, "stop")
    plain, armed = sifted(Group(prompt, [answer])), sifted(Group(prompt, [answer], TOOLS))
    bare = sifted(Group(prompt, [answer], [TOOLS[0]["function"]]))
    assert to_line(armed) == {**to_line(plain), "tools": TOOLS} == to_line(bare)
    assert "tools" not in to_line(plain)
    assert from_line(Lesson, json.loads(json.dumps(to_line(armed)))) == armed
    assert from_line(Lesson, {"id": "old", "messages": messages}).tools is None


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny teacher whose template shows tools; questions with and without them, answered and not."""
    folder = tmp_path_factory.mktemp("tools")
    tokenizer = train_tokenizer(320)
    tokenizer.chat_template = QWEN_LIKE
    tokenizer.save_pretrained(save_tiny(folder / "teacher", seed=1))
    asked = [{"prompt": f"Weather in town {n}?"} | ({"tools": TOOLS} if n % 2 else {}) for n in range(8)]
    write_jsonl(folder / "asked.jsonl", asked)
    write_jsonl(
        folder / "given.jsonl",
        [line | {"prompt": f"And {n}?", "answer": f"Rain {n}."} for n, line in enumerate(asked)],
    )
    write_jsonl(folder / "eval.jsonl", [{"prompt": "Weather in Bern?", "answer": "Rain.", "tools": TOOLS}])
    return folder


@pytest.fixture(scope="module")
def run(job: Path) -> Run:
    settings = {
        "name": "tools",
        "teacher": {"model": "teacher", "dtype": "float32"},
        "student": {"prune": {"layers": 1, "keep": "first"}},
        "prompts": [{"file": "asked.jsonl"}, {"file": "given.jsonl", "answers": "given"}],
        "splits": {"tune": 0.2},
        "teach": {"max_new_tokens": 8, "system": "Be brief."},
        "filter": {"verify": "pattern", "pattern": "(?s).*", "truncated": "keep", "facts": "flag"},
        "distil": {"steps": 2, "batch_size": 8, "micro_batch_size": 4},
    }
    made = Run(job / "runs/tools", build_recipe(settings, "test"), job)
    assert run_pipeline(made, Progress(), until="distil") == ["prompts", "teach", "filter", "distil"]
    return made


def test_teacher_and_student_read_a_lesson_with_the_same_tools(run: Run) -> None:
    lessons = [from_line(Lesson, line) for line in read_lines(run.folder("filter") / "lessons.jsonl")]
    declared = {line["id"]: line.get("tools") for line in read_lines(run.folder("prompts") / "prompts.jsonl")}
    armed = [lesson for lesson in lessons if lesson.tools]
    assert len(armed) >= 4
    assert any(lesson.messages[-1]["content"].startswith("Rain") for lesson in armed)
    assert any(not lesson.messages[-1]["content"].startswith("Rain") for lesson in armed)
    renderer, book = Renderer.load(run.base / "teacher"), Book.open(run.folder("teach") / "signals")
    for lesson in lessons:
        assert lesson.tools == declared[Prompt(lesson.messages[1:-1], "").id]
        row = renderer.lesson(lesson.messages, lesson.complete, lesson.tools)
        assert book.has(book.key(row.ids, row.mask))
        assert ("weather" in renderer.tokenizer.decode(row.ids)) == bool(lesson.tools)
    counts = run.manifest("distil").counts  # type: ignore[union-attr]
    assert counts["lessons"] == sum(lesson.split == "train" for lesson in lessons)
    assert "without signal" not in counts
    facts = run.manifest("filter").counts["facts"]  # type: ignore[union-attr]
    assert facts["probabilities"] >= len(armed)


def test_a_local_teacher_is_shown_the_tools_of_its_questions(run: Run) -> None:
    renderer = Renderer.load(run.base / "teacher")
    tools = {line["id"]: line.get("tools") for line in read_lines(run.folder("prompts") / "prompts.jsonl")}
    asked = [line for line in read_lines(run.folder("teach") / "answers.jsonl") if "answered_by" not in line]
    assert len(asked) == 8
    for line in asked:
        shown = renderer.prompt_ids(line["messages"][:-1], tools[line["prompt"]])
        assert line["prompt_tokens"] == len(shown)


def test_an_items_tools_are_declared_to_the_model_that_is_measured(job: Path) -> None:
    task = load_task(job / "eval.jsonl", "exact", "weather")
    (item,) = task.items or ()
    model = LocalModel(job / "teacher", dtype="float32")
    spec = ModelSpec("student", "local", str(job / "teacher"))
    plain = EvaluationTask("plain", "exact", [Item(item.messages, item.reference)])
    figures = answer_tasks(model, spec, [task, plain], 4, None, lambda count, note: None).figures
    with_tools, without = (len(model.renderer.prompt_ids(item.messages, tools)) for tools in (TOOLS, None))
    assert with_tools > without
    assert figures.prompt_tokens == with_tools + without  # two questions, not one asked once


@pytest.fixture
def calling_api() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that answers every question with a call, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **CALL}]}
            body = json.dumps({"choices": [{"message": turn, "finish_reason": "tool_calls"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", sent
    server.shutdown()
    server.server_close()


def test_a_call_of_an_api_is_judged_as_the_text_that_open_models_write(
    calling_api: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    url, sent = calling_api
    right = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bern"}}\n</tool_call>'
    items = [Item([{"role": "user", "content": "Weather in Bern?"}], right, tools) for tools in (TOOLS, None)]
    tasks, spec = [EvaluationTask("calls", "exact", items)], ModelSpec("teacher", "api", "big", api=url)
    for _ in range(2):
        model = ApiModel(url, "big")
        answers = tmp_path / "answers.jsonl"
        verdicts = answer_tasks(model, spec, tasks, 4, answers, lambda count, note: None).verdicts
        model.close()
        assert [verdict.correct for verdict in verdicts["calls"]] == [True, True]
    assert sorted("tools" in body for body in sent) == [False, True]  # the second time nobody was asked


def test_a_recipes_tools_are_declared_where_an_item_has_none_of_its_own(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d", "tools": TOOLS[:1]}]
    path = write_jsonl(tmp_path / "eval.jsonl", lines)
    plain, own = load_task(path, "exact", "t", tools=[*TOOLS, *TOOLS]).items or ()
    assert (plain.tools, own.tools) == ([*TOOLS, *TOOLS], TOOLS[:1])


def test_what_declares_no_tools_keeps_the_key_of_its_task() -> None:
    item, lesson = Item([{"role": "user", "content": "a"}], "b"), Lesson("i", turns("a", "b"))
    # Taken before there were tools.
    assert EvaluationTask("t", "exact", [item]).key == "4fe3c1f3e33d169bb10b44bc10f9fb1a"
    assert EvaluationTask("t", "likelihood", lessons=[lesson]).key == "36a2dcbace75b7dee1be61bf3a084618"


@pytest.mark.parametrize("tools", ["weather", ["weather"], [{"name": "weather"}], {"function": {}}])
def test_an_items_tools_that_are_no_declarations_are_refused(tools: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "eval.jsonl", [{"prompt": "a", "answer": "b", "tools": tools}])
    with pytest.raises(DataError, match="item 1: tools are not declarations") as caught:
        load_task(path, "exact", "t")
    assert all((caught.value.got, caught.value.expected, caught.value.do))
