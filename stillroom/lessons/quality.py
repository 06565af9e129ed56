"""Which answers are worth learning, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from stillroom.contracts.records import Answer

Checker = Callable[[str, str | None], bool]
"""(answer text, right answer or None) -> whether it is right."""

_LEAKED = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id)\|>|\[/?INST\]")


def objection(answer: Answer, *, keep_truncated: bool) -> tuple[str, str] | None:
    """Why an answer cannot be a lesson whatever the task: (reason, detail), or None.

    A refusal by the provider is rejected; an in-task "I cannot tell from this" is an answer like any other,
    or the student would never learn to hedge.
    """
    text = answer.messages[-1]["content"]
    if answer.finish == "failed":
        return "failed", answer.error or ""
    if answer.finish == "refused":
        return "refused by the provider", answer.error or ""
    if answer.finish == "length" and not keep_truncated:
        return "cut off at max_new_tokens", f"{answer.completion_tokens} tokens"
    if not text.strip():
        return "empty", ""
    if found := _LEAKED.search(text):
        return "chat template leaked into the answer", found.group()
    if loop := _loop(text):
        return "repeats itself", loop
    return None


def _loop(text: str, words: int = 8, times: int = 4) -> str:
    """A phrase of eight words that occurs four times or more, or nothing."""
    tokens = text.split()
    if len(tokens) < words * times:
        return ""
    phrases = Counter(tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1))
    phrase, count = phrases.most_common(1)[0]
    return " ".join(phrase) if count >= times else ""
