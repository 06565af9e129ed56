"""Conversations of several turns, with reasoning and tool calls, from an answer to the tokens that are learned."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import train_tokenizer

from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Prompt
from stillroom.lessons.answers import lesson_messages
from stillroom.lessons.contamination import HeldOut
from stillroom.lessons.filtering import Filtering
from stillroom.lessons.groups import Group
from stillroom.models.rendering import Rendered, Renderer
from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate

# As Qwen's: earlier turns lose their reasoning, the turns after the last question keep it; tool calls in tags; what tools
# say comes as the user's turn.
QWEN_LIKE = """\
{%- set ns = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
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
