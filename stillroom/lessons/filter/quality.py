"""Which answers are worth learning, and why the others are not."""

from __future__ import annotations

import re
import zlib
from collections import Counter

from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer
from stillroom.lessons.filter.language import language_of
from stillroom.lessons.filter.refusals import refusal

_LEAKED = re.compile(
    r"<\|[a-z_]{3,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos)>|^#{2,3} (?:Instruction|Response):"
    r"|\n\n(?:Human|User): .*\n\n(?:Assistant|AI):",
    re.M | re.S,
)
_TAIL_REPEATS, _TAIL_LENGTH, _LONGEST_PERIOD = 6, 120, 400
_COMPRESSED = 0.08
"""Text that shrinks to less than this says one thing over and over; prose shrinks to 0.3 or more."""
_COMPRESSIBLE = 2000
"""Shorter texts do not tell."""


def objection(answer: Answer, rule: Filter) -> tuple[str, str] | None:
    """Why an answer cannot be a lesson whatever the task: (reason, detail), or None.

    A refusal by the provider is rejected; an in-task "I cannot tell from this" is an answer like any other,
    or the student would never learn to hedge.
    """
    message = answer.messages[-1]
    text = message.get("content") or ""
    if answer.finish == "failed":
        return "failed", answer.error or ""
    if answer.finish == "refused":
        return "refused by the provider", answer.error or ""
    if answer.finish == "length" and rule.truncated != "keep":
        return "cut off at max_new_tokens", f"{answer.completion_tokens} tokens"
    if not text.strip() and not message.get("tool_calls"):
        return "empty", ""
    if words := refusal(text):
        return "refused by the provider", words
    if found := _LEAKED.search(text):
        return "chat template leaked into the answer", found.group()[:80]
    if loop := repeats(text):
        return "repeats itself", loop
    return _not_as_asked(text, rule)


def _not_as_asked(text: str, rule: Filter) -> tuple[str, str] | None:
    if rule.min_characters and len(text) < rule.min_characters:
        return "too short", f"{len(text)} characters"
    if rule.max_characters and len(text) > rule.max_characters:
        return "too long", f"{len(text)} characters"
    if rule.language and (found := language_of(text)) not in (None, rule.language):
        return "another language", str(found)
    return None


def repeats(text: str) -> str:
    """What a text says over and over, or nothing.

    Three signs: a phrase of eight words four times or more; an end that is one short piece again and again, which is how
    models get stuck; a long text that compresses to almost nothing.
    """
    return _phrase(text) or _stuck_end(text) or _compressible(text)


def _phrase(text: str, words: int = 8, times: int = 4) -> str:
    tokens = text.split()
    if len(tokens) < words * times:
        return ""
    phrases = Counter(tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1))
    phrase, count = phrases.most_common(1)[0]
    return " ".join(phrase) if count >= times else ""


def _stuck_end(text: str) -> str:
    end = text.rstrip()[-_LONGEST_PERIOD * _TAIL_REPEATS :]
    for period in range(1, len(end) // _TAIL_REPEATS + 1):
        piece = end[-period:]
        times = max(_TAIL_REPEATS, -(-_TAIL_LENGTH // period))
        if any(map(str.isalnum, piece)) and end.endswith(piece * times):
            return piece.strip()
    return ""


def _compressible(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) < _COMPRESSIBLE or len(zlib.compress(data, 6)) >= _COMPRESSED * len(data):
        return ""
    return f"{text.strip()[:60]}..."
