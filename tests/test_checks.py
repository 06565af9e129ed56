"""Is this answer right? Reasoning taken off, JSON read strictly, fields judged one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.checks import compare, equal_text, parse_object, strip_reasoning
from stillroom.checks.json_fields import same
from stillroom.checks.reasoning import reasoning_length
from stillroom.contracts.errors import DataError

REFERENCE = '{"intent": "refund", "product": "blue kettle", "order": null, "urgency": "high"}'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>kettle, so high</think>\n42", "42"),
        ("  <think>a\nb</think>\n\n<think>again</think> 42 ", "42"),
        ("the template opened it</think>\n42", "42"),
        ("<think>never ends, 42", ""),
        ("<think></think>42", "42"),
        ("42 <think>afterthought</think>", "42 <think>afterthought</think>"),
        ("42", "42"),
        ("", ""),
    ],
)
def test_reasoning_comes_off_and_the_answer_stays(text: str, answer: str) -> None:
    assert strip_reasoning(text) == answer


def test_equal_text_ignores_reasoning_and_outer_whitespace_only() -> None:
    assert equal_text("<think>x</think>\n Paris\n", "Paris")
    assert not equal_text("paris", "Paris")
    assert not equal_text("Paris.", "Paris")


def test_the_right_object_is_exact_whatever_its_key_order_and_spacing() -> None:
    answer = '<think>t</think>\n{"urgency":"high","order":null,\n"product":"blue kettle","intent":"refund"}'
    verdict = compare(answer, REFERENCE)
    assert verdict.valid
    assert verdict.exact
    assert set(verdict.fields.values()) == {True}


def test_a_wrong_value_costs_its_field_and_exactness_only() -> None:
    verdict = compare(REFERENCE.replace("refund", "return"), REFERENCE)
    assert verdict.valid
    assert not verdict.exact
    assert verdict.fields == {"intent": False, "product": True, "order": True, "urgency": True}


def test_a_missing_key_is_wrong_even_where_null_is_right() -> None:
    verdict = compare('{"intent": "refund", "product": "blue kettle", "urgency": "high"}', REFERENCE)
    assert verdict.fields["order"] is False
    assert not verdict.exact


def test_an_extra_key_keeps_the_fields_but_not_exactness() -> None:
    verdict = compare(REFERENCE[:-1] + ', "note": "x"}', REFERENCE)
    assert all(verdict.fields.values())
    assert verdict.valid
    assert not verdict.exact


@pytest.mark.parametrize(
    "text",
    [
        f"Here you are: {REFERENCE}",
        f"{REFERENCE} Anything else?",
        f"{REFERENCE}{REFERENCE}",
        REFERENCE[:-1],
        "[1, 2]",
        "null",
        "",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        "{'a': 1}",
        "[" * 100_000,
        '{"a": ' + "1" * 10_000 + "}",
        "<think>" + REFERENCE,
        f"```json\n{REFERENCE}\n``` and more",
    ],
)
def test_anything_but_one_object_is_invalid(text: str) -> None:
    assert parse_object(text) is None
    verdict = compare(text, REFERENCE)
    assert (verdict.valid, verdict.exact) == (False, False)
    assert set(verdict.fields.values()) == {False}


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```", "<think>t</think>```JSON\n{}\n```"])
def test_a_code_fence_around_the_object_is_allowed(fence: str) -> None:
    assert parse_object(fence.replace("{}", REFERENCE)) == json.loads(REFERENCE)


def test_a_reference_that_is_no_object_is_the_users_fault_to_mend() -> None:
    with pytest.raises(DataError, match="reference is not a JSON object"):
        compare(REFERENCE, "refund")


def test_true_is_not_one_and_one_is_one_point_nought() -> None:
    assert not same(True, 1)
    assert not same([0], [False])
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert same({"a": [1, None, "x"]}, {"a": [1.0, None, "x"]})
    assert not same("48213", 48213)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_every_object_equals_itself_and_no_other(value: dict[str, object]) -> None:
    text = json.dumps(value)
    assert compare(text, text).exact
    assert not compare(json.dumps({**value, "one key more": None}), text).exact


def test_the_length_of_reasoning_ends_with_its_closing_tag() -> None:
    pieces = ["<thi", "nk>", "a b", "</th", "ink>", "\n", "{", "}"]

    def text(n: int) -> str:
        return "".join(pieces[:n])

    assert reasoning_length(len(pieces), text) == 5
    assert reasoning_length(4, text) == 0
    assert reasoning_length(0, text) == 0
