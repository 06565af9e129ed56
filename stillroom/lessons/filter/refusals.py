"""Refusals of a provider, as against abstentions that belong to the task.

"I'm sorry, but I can't help with that" teaches a student to refuse its own job. "The letter does not say when" teaches it
not to invent: that is an answer. What tells them apart is what the sentence is about: the request and the assistant, or the
evidence.
"""

from __future__ import annotations

import re

from stillroom.checks.reasoning import strip_reasoning

_OPENING = 320
"""A refusal comes first; later on the same words are part of an answer."""
# Spaces as \s: the whole is read in verbose mode.
_CANNOT = (
    r"(?:can(?:no|['’])?t|can\s+not|am\s+(?:not\s+able|unable)|['’]m\s+(?:not\s+able|unable|not\s+going)|"
    r"(?:won['’]?t|will\s+not)(?:\s+be\s+able\s+to)?|must\s+decline)"
)
_HELP = (
    r"(?:to\s+)?(?:help|assist|comply|fulfil?l|support|engage|participate|continue|discuss|generate|create|write|produce|"
    r"provide|offer|share|give|answer|respond)"
)
_REQUEST = r"(?:that|this|the|your|such|these|those|any|you|instructions|content|information|advice|guidance|assistance)\b"
_REFUSAL = re.compile(
    rf"""
    \bI\s*{_CANNOT}\s+{_HELP}\b(?:\s+(?:you|in|with|to|on|out|by|about|for))*\s*{_REQUEST}
  | \bI\s*{_CANNOT}\s+{_HELP}(?:\s+with)?\s*[.!]
  | \bas\s+an?\s+(?:AI|artificial\s+intelligence|large\s+language|language)\b[^.]{{0,60}}\bI\s*{_CANNOT}
  | \b(?:against|violates?|breach(?:es)?)\s+(?:my|our|the|\w+['’]s)\s+(?:\w+\s+)?
    (?:guidelines|polic(?:y|ies)|programming|terms)
  | \bI\s+(?:must|have\s+to)\s+(?:respectfully\s+)?(?:decline|refuse)
  | \b(?:this|your)\s+(?:request|prompt|message|content)\s+(?:was|has\s+been|is)\s+(?:blocked|flagged|filtered|refused)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_EVIDENCE = re.compile(
    r"\b(?:document|passage|text|article|context|excerpt|source|letter|message|e?mail|table|transcript|report|question|premises?|"
    r"data|facts?|photo|statement)s?\b[^.]{0,40}\b(?:do(?:es)?\s?n[o'’]t|do(?:es)?\s+not|never|no|lacks?|without)\b"
    r"|\b(?:not|n['’]t)\s+(?:enough|sufficient|mentioned|stated|specified|given|known|possible\s+to\s+(?:tell|know|say))\b"
    r"|\b(?:insufficient|no)\s+(?:information|evidence|data|mention)\b"
    r"|\b(?:based\s+on|from|in)\s+(?:the|this|what)\s+(?:information|passage|text|document|context|letter|message|given|is)\b"
    r"|\b(?:can(?:no|['’])?t|cannot)\s+be\s+(?:determined|known|answered|inferred)\b",
    re.IGNORECASE,
)


def refusal(text: str) -> str | None:
    """The words by which an answer refuses the request, or None; an abstention for want of evidence is none.

    Known are English refusals; an API that says so itself (`finish: refused`) is believed in every language.
    """
    opening = strip_reasoning(text)[:_OPENING]
    found = _REFUSAL.search(opening)
    if found is None:
        return None
    sentence_end = opening.find(".", found.end())
    nearby = opening[: sentence_end if sentence_end >= 0 else None]
    return None if _EVIDENCE.search(nearby) else " ".join(found.group().split())
