"""Do the quotes of an answer stand in the document that it is about, and does it say what is right?"""

from __future__ import annotations

import re
import unicodedata

from stillroom.checks.reasoning import strip_reasoning

FEWEST_WORDS = 3
"""Shorter passages in quotation marks are names and terms, not quotes."""
_QUOTED = re.compile(r"“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]|\"([^\"\n]+)\"|^[ \t]*>[ \t]?(.+)$", re.M)
_WORD = re.compile(r"[^\W_]+")
_GAP = re.compile(r"\s*(?:\[\s*(?:\.\.\.|…)\s*\]|\(\s*(?:\.\.\.|…)\s*\)|\.\.\.|…)\s*")


def quotes(text: str) -> list[str]:
    """The passages that an answer quotes, in order: in quotation marks, or as a Markdown block quote."""
    found = (next(filter(None, groups)) for groups in _QUOTED.findall(strip_reasoning(text)))
    return [quote.strip() for quote in found if len(quote.split()) >= FEWEST_WORDS]


def missing_quotes(text: str, document: str) -> list[str]:
    """The quotes of an answer that do not stand in the document.

    Case, spacing, typographic quotes and dashes, and a full stop or comma at a quote's end do not matter; an omission
    (..., …, [...]) must have its parts in the document in that order.
    """
    source = _plain(document)
    return [quote for quote in quotes(text) if not _stands_in(quote, source)]


def says(text: str, right: str) -> bool:
    """Whether the right answer's words stand in an answer, one after the other, whatever their case and punctuation."""
    wanted = _WORD.findall(_plain(right))
    given = _WORD.findall(_plain(strip_reasoning(text)))
    size = len(wanted)
    return size > 0 and any(given[at : at + size] == wanted for at in range(len(given) - size + 1))


def _stands_in(quote: str, source: str) -> bool:
    place = 0
    for part in _GAP.split(quote):
        words = _plain(part).rstrip(".,;:!? ")
        place = source.find(words, place)
        if place < 0:
            return False
        place += len(words)
    return True


_SIGNS = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "\u00ad": None})


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold().split())
