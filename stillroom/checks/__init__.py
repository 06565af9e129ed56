"""Is this answer right? Numbers, mathematics, choices, JSON, tool calls, quotes, code that is run, your own checks."""

from stillroom.checks.cases import (
    COMPARED,
    UNCHECKED,
    WRONG,
    Case,
    Finding,
    Verifier,
    check_calls,
    check_code,
    check_quotes,
    right_calls,
)
from stillroom.checks.choice import chosen_letter, same_choice
from stillroom.checks.code import CodeTests, failure
from stillroom.checks.exact import equal_text
from stillroom.checks.expressions import same_mathematics
from stillroom.checks.json_fields import JsonVerdict, compare, parse_object
from stillroom.checks.numbers import final_number, number_spans, same_number
from stillroom.checks.own import load_checker
from stillroom.checks.quotes import missing_quotes, quotes, says
from stillroom.checks.reasoning import strip_reasoning
from stillroom.checks.sandbox import Limits, Outcome, run_python
from stillroom.checks.schema import Schema
from stillroom.checks.tools import Call, Tools, same_calls, tool_calls, wanted_calls

__all__ = [
    "COMPARED",
    "UNCHECKED",
    "WRONG",
    "Call",
    "Case",
    "CodeTests",
    "Finding",
    "JsonVerdict",
    "Limits",
    "Outcome",
    "Schema",
    "Tools",
    "Verifier",
    "check_calls",
    "check_code",
    "check_quotes",
    "chosen_letter",
    "compare",
    "equal_text",
    "failure",
    "final_number",
    "load_checker",
    "missing_quotes",
    "number_spans",
    "parse_object",
    "quotes",
    "right_calls",
    "run_python",
    "same_calls",
    "same_choice",
    "same_mathematics",
    "same_number",
    "says",
    "strip_reasoning",
    "tool_calls",
    "wanted_calls",
]
