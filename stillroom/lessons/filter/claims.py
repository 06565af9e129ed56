"""What an answer states that can be wrong: names, dates and numbers, found by their form.

Names are found by their capital letters, so none are found in German, whose nouns all have them, nor in scripts without
capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from stillroom import checks
from stillroom.checks.reasoning import CLOSE
from stillroom.lessons.filter.language import COMMON_WORDS, language_of

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS if month != "may") + "|sept|may"
_DATE = re.compile(
    rf"""\b(?:(?P<year>\d{{4}})-(?P<month>\d{{2}})-(?P<day>\d{{2}})
    |(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<name2>{_MONTH})\b\.?(?:,?\s+(?P<year2>\d{{4}}))?
    |(?P<name3>{_MONTH})\b\.?\s+(?P<day3>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\d)(?:,?\s+(?P<year3>\d{{4}}))?
    |(?P<name4>{_MONTH})\b\.?,?\s+(?:of\s+)?(?P<year4>\d{{4}}))\b""",
    re.VERBOSE | re.IGNORECASE,
)
_SPELLED = dict(
    zip(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ],
        range(13),
        strict=True,
    )
)
_ITEM_NUMBER = re.compile(r"^[ \t]*\(?\d{1,3}[.)](?=\s)", re.M)
_CAPITAL = r"[^\W\d_a-z][\w'’-]*"
_NAME = re.compile(
    rf"\b(?:(?-i:{_CAPITAL})(?:\s+(?:of|de|da|di|van|von|der|la|le|al|bin)\s+|\s+))*{_CAPITAL}"
)
_START = re.compile(r"(?:\A|[.!?:]\s+|\n)[\s\"'“‘(*#>-]*\Z")
_OPENERS = """i'm i've i'd i'll yes those here then now both many most only from during under over between finally first next
later thus hence today since because although while however also monday tuesday wednesday thursday friday saturday sunday"""
_NO_NAMES = COMMON_WORDS.union(_MONTHS, _OPENERS.split())
"""Words that have a capital letter for another reason than being a name."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Claim:
    """One statement: `key` is equal for equal ones however they are written; it stands at `start` to `end` of the text."""

    kind: Literal["name", "date", "number"]
    key: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Stated:
    """A text, by what it states."""

    text: str

    @cached_property
    def claims(self) -> list[Claim]:
        """Its claims, in order of kind and place; those of the reasoning are none."""
        shift = self.text.rfind(CLOSE) + len(CLOSE) if CLOSE in self.text else 0
        answer = self.text[shift:]
        dates = list(_dates(answer, shift))
        for claim in dates:  # their parts are neither numbers nor names
            start, end = claim.start - shift, claim.end - shift
            answer = answer[:start] + ";" * (end - start) + answer[end:]
        return [*dates, *_numbers(answer, shift), *_names(answer, shift)]

    @cached_property
    def keys(self) -> frozenset[str]:
        """What it states, to look claims up in; spelled numbers count as numbers."""
        spelled = {f"number {_SPELLED[word]}" for word in self.words & _SPELLED.keys()}
        dates = {claim.key for claim in self.claims if claim.kind == "date"}
        # Whoever gives the whole date has given its month and its year as well.
        parts = {part for key in dates for part in _parts(key)}
        return frozenset({claim.key for claim in self.claims} | spelled | parts)

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words, in small letters."""
        return frozenset(_WORD.findall(self.text.casefold()))

    def says(self, claim: Claim) -> bool:
        """Whether a claim stands in this text too, whatever the wording."""
        if claim.key in self.keys:
            return True
        if claim.kind != "name":
            return False
        words = _WORD.findall(claim.key.removeprefix("name "))
        if self.words.issuperset(words):
            return True
        # A person may be called by the last name alone, unless there is another of that name.
        bearers = [key for key in self.keys if key.startswith("name ") and key.endswith(f" {words[-1]}")]
        return len(words) == 2 and words[1] in self.words and bearers in ([], [f"name {words[1]}"])


def _dates(text: str, shift: int) -> Iterator[Claim]:
    for found in _DATE.finditer(text):
        year = found["year"] or found["year2"] or found["year3"] or found["year4"] or ""
        name = found["name2"] or found["name3"] or found["name4"]
        month = int(found["month"]) if found["month"] else _month(name)
        day = found["day"] or found["day2"] or found["day3"]
        if name and name.casefold() == "may" and not (found["day2"] or name[0] == "M"):
            continue  # "may 3" in a sentence is a verb
        if 1 <= month <= 12 and (not day or 1 <= int(day) <= 31):
            key = f"date {year}-{month:02d}-{int(day) if day else 0:02d}"
            yield Claim("date", key, found.group(), found.start() + shift, found.end() + shift)


def _month(name: str) -> int:
    return next(number for number, month in enumerate(_MONTHS, 1) if month.startswith(name.casefold()[:3]))


def _parts(key: str) -> Iterator[str]:
    """The less exact dates that a date implies."""
    year, month, day = key.removeprefix("date ").split("-")
    yield f"date -{month}-{day}"
    yield f"date {year}-{month}-00"
    if year:
        yield f"number {int(year)}"


def _numbers(text: str, shift: int) -> Iterator[Claim]:
    items = {found.end() for found in _ITEM_NUMBER.finditer(text)}
    for value, start, end in checks.number_spans(text):
        if not any(start < item <= end + 1 for item in items):
            yield Claim("number", f"number {value}", text[start:end], start + shift, end + shift)


def _names(text: str, shift: int) -> Iterator[Claim]:
    if language_of(text) == "de":
        return
    for found in _NAME.finditer(text):
        start, words = found.start(), found.group().split()
        opens = bool(_START.search(text[max(0, start - 8) : start]))
        while words and words[0].casefold() in _NO_NAMES:
            start += (
                len(words[0])
                + len(text[start + len(words[0]) :])
                - len(text[start + len(words[0]) :].lstrip())
            )
            words, opens = words[1:], False
        # Alone at the start of a sentence, any word has a capital letter.
        if not words or (opens and len(words) == 1) or (len(words) == 1 and len(words[0]) < 2):
            continue
        name = re.sub(r"['’]s$", "", " ".join(words))
        yield Claim("name", f"name {name.casefold()}", name, start + shift, start + len(name) + shift)
