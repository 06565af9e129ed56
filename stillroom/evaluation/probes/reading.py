"""Probes that ask nothing: they read the answers to the run's own questions once more."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from stillroom.checks import parse_object, strip_reasoning
from stillroom.evaluation.probes.form import form_of
from stillroom.evaluation.probes.probe import Found, Given, Material, Probe, Unsuited, share

_CANNOT_TELL = re.compile(
    r"\b(?:can(?:no|['’])?t|can\s+not|cannot)\s+(?:tell|say|know|be\s+(?:known|told|determined|inferred|answered))\b"
    r"|\b(?:do(?:es)?\s+not|do(?:es)?n['’]t)\s+(?:know|say|state|mention|specify|tell)\b"
    r"|\bnot\s+(?:stated|given|mentioned|specified|known|enough|sufficient|possible\s+to\s+(?:tell|say|know))\b"
    r"|\b(?:unknown|unanswerable|unclear|undetermined)\b"
    r"|\bno\s+(?:information|evidence|answer)\b",
    re.IGNORECASE,
)
_ANSWER = "the answer"


def formed(material: Material) -> Probe:
    """Does the answer have the task's form, right or wrong, and does it come to an end?

    Raises:
        Unsuited: any text is an answer to these questions.
    """
    in_form = form_of(material.task)
    if in_form is None:
        raise Unsuited("any text is an answer to the run's own questions")

    def measure(given: Given) -> Iterator[Found]:
        yield from share("form", [in_form(verdict.text) for verdict in given.own])
        yield from share("ended", [verdict.finish == "stop" for verdict in given.own])

    return Probe("format", measure)


def rare(material: Material) -> Probe:
    """Right answers that are rare among the lessons, against common ones: the third of the questions at either end.

    An answer is as common as its text among the lessons; a JSON answer as its rarest field, of those whose values repeat.

    Raises:
        Unsuited: all right answers are equally common.
    """
    common = _commonness(material)
    counts = sorted(common)
    low, high = counts[(len(counts) - 1) // 3], counts[2 * (len(counts) - 1) // 3]
    if low == high:
        raise Unsuited("the right answers of its questions are equally common among the lessons")

    def measure(given: Given) -> Iterator[Found]:
        pairs = list(zip(common, given.own, strict=True))
        yield from share("right_rare", [verdict.correct for count, verdict in pairs if count <= low])
        yield from share("right_common", [verdict.correct for count, verdict in pairs if count >= high])

    return Probe("rare", measure)


def _commonness(material: Material) -> list[int]:
    """How often each item's right answer, or its rarest part, is among the lessons."""
    if material.task.score != "json":
        counts = Counter(material.lessons)
        return [counts[strip_reasoning(item.reference)] for item in material.items]
    seen: dict[str, Counter[str]] = {}
    for text in material.lessons:
        for key, value in (parse_object(text) or {}).items():
            seen.setdefault(key, Counter())[_text(value)] += 1
    repeating = {key: found for key, found in seen.items() if 2 * len(found) <= found.total()}
    if not repeating:
        return [0] * len(material.items)
    return [
        min(repeating[key][_text(value)] for key, value in fields.items() if key in repeating)
        if (fields := parse_object(item.reference) or {}).keys() & repeating.keys()
        else 0
        for item in material.items
    ]


def abstention(material: Material) -> Probe:
    """Where the teacher says that it cannot tell, does the model? And does it where the teacher does not?

    In a JSON answer a field that is null says so, in a text words such as "is not stated" (English ones are known).
    """

    def measure(given: Given) -> Iterator[Found]:
        if not given.teacher:
            return
        pairs = [
            (unsure(own.text), unsure(theirs.text))
            for own, theirs in zip(given.own, given.teacher, strict=True)
        ]
        yield from share("abstains_too", [one in own for own, theirs in pairs for one in theirs])
        yield from share("abstains_alone", [bool(own - theirs) for own, theirs in pairs])

    return Probe("abstention", measure)


def unsure(text: str) -> set[str]:
    """The parts of an answer that say that they cannot tell: names of fields, or the answer as a whole."""
    fields = parse_object(text)
    if fields is not None:
        return {key for key, value in fields.items() if value is None}
    return {_ANSWER} if _CANNOT_TELL.search(strip_reasoning(text)) else set()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
