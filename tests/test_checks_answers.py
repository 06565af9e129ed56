"""Verdicts on numbers, mathematics, choices, schemas, tool calls and quotes, against published ones where there are any."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gold_teacher import first_allowed
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.checks import (
    Call,
    Schema,
    Tools,
    chosen_letter,
    final_number,
    missing_quotes,
    quotes,
    same_calls,
    same_choice,
    same_mathematics,
    same_number,
    tool_calls,
    wanted_calls,
)
from stillroom.contracts.errors import DataError


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def test_verdicts_on_gsm8k_are_the_published_ones(shared_data: Path) -> None:
    wrong, total = [], 0
    for row in lines(shared_data / "gsm8k/example_model_solutions.jsonl.gz"):
        for verdict in (value for value in row.values() if isinstance(value, dict)):
            total += 1
            if same_number(verdict["solution"], row["ground_truth"]) != verdict["is_correct"]:
                wrong.append(verdict["solution"][-80:])
    assert total == 5276
    assert len(wrong) <= 0.005 * total, wrong
    assert wrong == []  # and in fact none


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 3 + 4 = 7.\n#### 7", 7),
        ("#### 1,234.50", Fraction("1234.5")),
        ("She pays $18.00", 18),
        ("The answer is **42**.", 42),
        ("The answer is -7 degrees", -7),
        ("that leaves −3", -3),
        ("a loss of -$5", -5),
        ("$-5", -5),
        ("half of it: 1/2", Fraction(1, 2)),
        ("It takes 1 1/2 hours", Fraction(3, 2)),
        ("6.02e23 atoms", Fraction("6.02e23")),
        ("A: 3 x 4 = 12", 12),
        (r"so \boxed{\text{about } 12}", 12),
        ("<think>99</think>The answer is 5", 5),
        ("5 apples, then 6, so 11 in all", 11),
        ("between 3 and 3.5.", Fraction("3.5")),
        ("the 45% share", 45),
        ("1e99999", None),
        ("divide 1/0", None),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_final_number_is_read_as_people_write_it(text: str, number: Any) -> None:
    assert final_number(text) == number


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000))
def test_every_fraction_is_read_back(value: Fraction) -> None:
    assert final_number(f"#### {value}") == value


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"Thus \boxed{x^2+2x+1}", "(x+1)^2", True),
        (r"\boxed{x^2+2x+2}", "(x+1)^2", False),
        (r"The answer is $\dfrac{\sqrt{3}}{2}$.", r"\frac{\sqrt{3}}{2}", True),
        (r"\boxed{3\frac{1}{2}}", "3.5", True),
        (r"\boxed{(1,2)}", "(1, 2)", True),
        (r"\boxed{(2,1)}", "(1, 2)", False),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", True),
        (r"\boxed{[0,1)}", "[0,1]", False),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{6.28}", r"2\pi", False),
        (r"\boxed{\text{Paris}}", "Paris", True),
        (r"\boxed{45\%}", "45", True),
        (r"\boxed{9^{9^{9^{9}}}}", "x", False),
        (r"\boxed{__import__('os')}", "x", False),
        ("after much thought 42", "42", True),
        ("after much thought 41", "42", False),
        ("", "42", False),
        ("(" * 5000, "x + 1", False),
    ],
)
def test_mathematics_is_compared_by_value_and_never_evaluated_as_python(
    answer: str, reference: str, right: bool
) -> None:
    assert same_mathematics(answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (r"\boxed{\sin^2 x+\cos^2 x}", "1", True),
        (r"\boxed{\{1,2\} \cup \{3\}}", r"\{1,2,3\}", True),
        (r"\boxed{x \in (-\infty, 2]}", r"(-\infty,2]", True),
        (r"\boxed{\frac{1}{2}\log 4}", r"\log 2", True),
        (r"\boxed{\binom{5}{2}}", "10", True),
        (r"\boxed{\binom{5}{2}}", "11", False),
        (r"\boxed{\{1,2\}}", r"\{1,2,3\}", False),
    ],
)
def test_math_verify_has_the_last_word_where_it_is_installed(
    answer: str, reference: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify")
    assert same_mathematics(answer, reference) is right
    monkeypatch.setattr("stillroom.checks.symbolic.installed", lambda: False)
    assert same_mathematics(answer, reference) is False


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(c)", "C"),
        ("B. Because of the light", "B"),
        ("The answer is (D).", "D"),
        ("The correct answer is **A**: it floats", "A"),
        ("It is not A. Answer: C", "C"),
        (r"\boxed{\text{B}}", "B"),
        ("<think>A?</think>\nB", "B"),
        ("Either (A) or (B)", None),
        ("A cat is an animal", None),
        ("The answer is unknown", None),
        ("", None),
    ],
)
def test_the_letter_chosen_is_found_and_hesitation_is_no_choice(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter
    if letter:
        assert same_choice(text, letter)


SCHEMA = {
    "type": "object",
    "required": ["name", "items"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 2, "pattern": "^[A-Z]"},
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "uniqueItems": True,
            "items": {"$ref": "#/$defs/item"},
        },
        "kind": {"enum": ["a", 1, None, True]},
        "size": {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "none"}]},
        "odd": {"oneOf": [{"multipleOf": 3}, {"multipleOf": 5}], "not": {"const": 9}},
    },
    "$defs": {"item": {"type": ["number", "null"], "exclusiveMaximum": 10}},
}
values = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["Al", "A", "al", 3]),
        "items": st.lists(st.sampled_from([1, 1.0, 9.5, 10, None, "x", True]), max_size=4),
        "kind": st.sampled_from(["a", 1, True, None, "b", False]),
        "size": st.sampled_from([0, 1, 2.0, 2.5, "none", "some"]),
        "odd": st.sampled_from([3, 5, 15, 9, 7, 0.5]),
        "more": st.just(1),
    },
)


@settings(max_examples=400, deadline=None)
@given(values)
def test_schemas_are_judged_as_the_reference_implementation_judges_them(value: dict[str, Any]) -> None:
    theirs = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert (Schema(SCHEMA).problem(value) is None) is theirs


@pytest.mark.parametrize(
    "schema", [{"type": "strin"}, {"typo": 1}, {"$ref": "#/$defs/no"}, [], {"items": {"if": {}}}]
)
def test_a_schema_that_could_only_be_half_checked_is_refused(schema: Any) -> None:
    with pytest.raises(DataError):
        Schema(schema)


def test_a_problem_says_where() -> None:
    problem = Schema(SCHEMA).problem({"name": "Al", "items": [1, 12]})
    assert problem == "items[1] is too large"


SETS = ["simple_python", "multiple", "parallel", "parallel_multiple", "live_simple"]
FLAWED = {
    # The published right call breaks the published declaration.
    "simple_python_307", "parallel_multiple_12", "parallel_multiple_21", "parallel_multiple_26", "live_simple_71-35-0",
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_published_calls_fit_their_declarations_and_mutated_ones_do_not(shared_data: Path, name: str) -> None:
    questions = lines(shared_data / f"bfcl/BFCL_v4_{name}.json.gz")
    answers = lines(shared_data / f"bfcl/possible_answer/BFCL_v4_{name}.json.gz")
    misfits = set()
    for question, answer in zip(questions, answers, strict=True):
        wanted = wanted_calls(json.dumps(answer["ground_truth"]))
        assert wanted is not None
        calls = [Call(tool, first_allowed(given)) for call in wanted for tool, given in call.items()]
        tools = Tools(question["function"])
        assert same_calls(list(reversed(calls)), wanted), answer["id"]
        if any(tools.problem(call) for call in calls):
            misfits.add(answer["id"])
        assert not same_calls(calls[1:], wanted)
        renamed = [Call(f"{calls[0].name}x", calls[0].arguments), *calls[1:]]
        assert tools.problem(renamed[0]) == f"there is no tool {calls[0].name}x"
        assert not same_calls(renamed, wanted)
        extra = [Call(calls[0].name, {**calls[0].arguments, "nobody asked": 1}), *calls[1:]]
        assert not same_calls(extra, wanted)
    assert misfits <= FLAWED or len(misfits - FLAWED) <= 0.01 * len(questions), misfits - FLAWED


@pytest.mark.parametrize(
    ("message", "calls"),
    [
        ({"content": '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'}, [Call("f", {"a": 1})]),
        ({"content": 'Sure:\n```json\n[{"name": "f", "parameters": {}}]\n```'}, [Call("f", {})]),
        ({"content": '{"f": {"a": 1}}'}, [Call("f", {"a": 1})]),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
            [Call("f", {"a": 1})],
        ),
        ({"content": "I need no tool for that."}, []),
        ({"content": "<tool_call>{oops</tool_call>"}, None),
        ({"content": '{"name": "f", "arguments": "not json"}'}, None),
        ({"content": "[1, 2]"}, None),
    ],
)
def test_tool_calls_are_read_in_the_forms_that_models_write(message: dict[str, Any], calls: Any) -> None:
    assert tool_calls(message) == calls


DOCUMENT = "The committee met on Tuesday.  It didn’t agree — not even on the date — and went home.\nNobody was\nsorry."


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ('They say "it didn\'t agree - not even on the date".', 0),
        ("> Nobody was sorry.\n\nThat is all.", 0),
        ("“The committee met ... and went home”", 0),
        ("“and went home [...] The committee met”", 1),
        ('"The committee met on Wednesday"', 1),
        ('The "committee" and the "date" are terms, not quotes.', 0),
        ('<think>"not in the document at all"</think> Fine.', 0),
    ],
)
def test_quotes_must_stand_in_the_document(answer: str, missing: int) -> None:
    assert len(missing_quotes(answer, DOCUMENT)) == missing


def test_every_stretch_of_a_document_is_a_quote_of_it() -> None:
    words = DOCUMENT.split()
    for start in range(len(words) - 4):
        quote = " ".join(words[start : start + 4])
        assert missing_quotes(f"“{quote}”", DOCUMENT) == []
        assert quotes(f"“{quote}”") == [quote]
