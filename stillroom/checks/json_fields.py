"""Is the answer the right JSON object, field by field?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from stillroom.checks.reasoning import strip_reasoning
from stillroom.contracts.errors import DataError

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class JsonVerdict:
    """What a JSON answer got right."""

    valid: bool
    """The answer is one JSON object and nothing else."""
    exact: bool
    """It has the reference's keys, no others, and every value is right."""
    fields: dict[str, bool]
    """Each of the reference's keys: is its value right?"""


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that an answer is, after its reasoning, bare or in one code fence; None otherwise.

    Strict, as programs that read the answer are (RFC 8259): text around the object, a key given twice, NaN
    and Infinity all make it invalid.
    """
    answer = strip_reasoning(text)
    fenced = _FENCE.fullmatch(answer)
    try:
        value = json.loads(
            fenced[1] if fenced else answer, parse_constant=_refuse, object_pairs_hook=_distinct
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def compare(answer_text: str, reference_text: str) -> JsonVerdict:
    """Hold an answer against the right one.

    Raises:
        DataError: the reference is not a JSON object.
    """
    wanted = parse_object(reference_text)
    if wanted is None:
        raise DataError(
            "a reference is not a JSON object",
            got=reference_text[:80],
            expected='an object such as {"intent": "refund"}',
            do="mend the task's file, or score it with `exact`",
        )
    given = parse_object(answer_text)
    if given is None:
        return JsonVerdict(valid=False, exact=False, fields=dict.fromkeys(wanted, False))
    fields = {key: key in given and same(given[key], value) for key, value in wanted.items()}
    return JsonVerdict(
        valid=True, exact=all(fields.values()) and given.keys() == wanted.keys(), fields=fields
    )


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: unlike Python's, true is not 1; 1 and 1.0 are one number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value
