"""The number that an answer ends with, and whether it is the right one.

Answers write numbers as people do: 1,234.50, $18, 45%, 3/4, 1 1/2, 6.02e23, -7. They are compared as exact fractions, so
0.5 is 1/2 and 18.00 is 18.
"""

from __future__ import annotations

import re
from fractions import Fraction

from stillroom.checks.reasoning import strip_reasoning

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.,])                     # not inside a word or another number
    (?P<sign>[-−–+]?)\s?[$€£¥]?\s?(?P<inner>[-−]?)
    (?:(?P<whole>\d+)\s+(?=\d+/\d))?     # the 1 of 1 1/2
    (?P<top>{_DIGITS})
    (?:[eE](?P<power>[-+]?\d{{1,3}}))?
    (?:\s?/\s?(?P<bottom>\d[\d,]*(?:\.\d+)?)(?![\d/]))?
    """,
    re.VERBOSE,
)
_MARKS = (
    re.compile(r"####\s*(.+)"),
    re.compile(r"^\s*\**\s*(?:final\s+answer|answer|A)\s*\**\s*[:=]\s*\**\s*(.+)", re.I | re.M),
    re.compile(r"\b(?:final\s+)?(?:answer|result|total)\s+(?:is|would\s+be|equals)\s*:?\s*\**\s*(.+)", re.I),
)
"""What introduces a final answer, the surest first; the last occurrence counts."""
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's calculator notes, such as <<2*9=18>>."""
_LARGEST_POWER = 400


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} of a text, or None; braces may be nested."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None


def final_part(text: str) -> str | None:
    r"""The part of an answer that states its result: in \boxed{}, after ####, "A:" or "the answer is"; or None."""
    answer = _CALCULATION.sub("", strip_reasoning(text))
    if (box := boxed(answer)) is not None:
        return box
    for mark in _MARKS:
        if found := mark.findall(answer):
            return str(found[-1]).strip().rstrip("*").rstrip()
    return None


def final_number(text: str) -> Fraction | None:
    """The number that an answer states as its result.

    It is the first number after the last mark of a final answer ("####", "A:", "the answer is"; "= " starts
    again, so that `A: 3 x 4 = 12` is 12), else the last number of the text. None where there is no number.
    """
    part = final_part(text)
    if part is not None:
        found = numbers(part.rpartition("=")[2]) or numbers(part)
        if found:
            return found[0]
    found = numbers(_CALCULATION.sub("", strip_reasoning(text)))
    return found[-1] if found else None


def numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order."""
    found = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in found if value is not None]


def number_spans(text: str) -> list[tuple[Fraction, int, int]]:
    """Every number of a text with where it starts and ends, in order."""
    found = ((_value(match), match) for match in _NUMBER.finditer(text))
    return [(value, match.start(), match.end()) for value, match in found if value is not None]


def same_number(answer_text: str, reference_text: str) -> bool:
    """Whether an answer's final number is the right one.

    Args:
        answer_text: the whole answer, reasoning included.
        reference_text: the right answer, bare ("18") or a whole worked solution ("... #### 18").
    """
    wanted = final_number(reference_text)
    return wanted is not None and final_number(answer_text) == wanted


def _value(match: re.Match[str]) -> Fraction | None:
    power = int(match["power"] or 0)
    if abs(power) > _LARGEST_POWER:
        return None
    value = Fraction(match["top"].replace(",", "")) * Fraction(10) ** power
    if match["bottom"]:
        bottom = Fraction(match["bottom"].replace(",", ""))
        if bottom == 0:
            return None
        value /= bottom
    if match["whole"]:
        value += int(match["whole"])
    return -value if "-" in _signs(match) else value


def _signs(match: re.Match[str]) -> str:
    return (match["sign"] + match["inner"]).replace("−", "-").replace("–", "")
