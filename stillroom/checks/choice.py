"""The letter that an answer to a multiple-choice question chooses."""

from __future__ import annotations

import re

from stillroom.checks.numbers import boxed
from stillroom.checks.reasoning import strip_reasoning

_STATED = re.compile(
    r"\b(?:final\s+|correct\s+|best\s+|right\s+)?(?:answer|choice|option)\s*"
    r"(?:is|would\s+be|:|=)*\s*:?\s*(?:option|choice)?\s*[*_(\[]*(?P<letter>[A-Z])(?![A-Za-z'’])",
    re.I,
)
_ALONE = re.compile(r"^[\s*_(\[]*(?P<letter>[A-Za-z])[\s*_)\].:]*$")
_LEADING = re.compile(r"^[\s*_(\[]*(?P<letter>[A-Z])[*_]*[)\].:]")
_BRACKETED = re.compile(r"\((?P<letter>[A-Z])\)")


def chosen_letter(text: str, letters: str = "ABCDEFGHIJ") -> str | None:
    r"""The letter that an answer ends up with, or None.

    The surest sign counts: \boxed{C}, then the last "the answer is C", then a line that is a letter alone, then an opening
    "C. ..." and last a single bracketed letter. An answer that names two letters equally is no choice.

    Args:
        text: the whole answer.
        letters: which letters are choices.
    """
    answer = strip_reasoning(text)
    if (box := boxed(answer)) is not None:
        answer = re.sub(r"\\text\{(.*?)\}", r"\1", box)
    stated = [match["letter"].upper() for match in _STATED.finditer(answer)]
    lines = [line for line in answer.splitlines() if line.strip()]
    alone = [match["letter"].upper() for line in lines if (match := _ALONE.match(line))]
    leading = [match["letter"] for line in lines[:1] if (match := _LEADING.match(line))]
    bracketed = list(dict.fromkeys(match["letter"] for match in _BRACKETED.finditer(answer)))
    for found in (stated[-1:], alone[-1:], leading, bracketed if len(bracketed) == 1 else []):
        if found and found[0] in letters:
            return found[0]
    return None


def same_choice(answer_text: str, reference_text: str) -> bool:
    """Whether the answer chooses the right letter; the reference is a letter ("B") or an answer that states one."""
    wanted = chosen_letter(reference_text)
    return wanted is not None and chosen_letter(answer_text) == wanted
