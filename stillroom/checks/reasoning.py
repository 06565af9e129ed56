"""Where a model's reasoning ends and its answer begins."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def strip_reasoning(text: str) -> str:
    """The answer without its leading reasoning and outer whitespace; reasoning that never closes leaves none."""
    answer = text.strip()
    before, close, after = answer.partition(CLOSE)
    if close and OPEN not in before:  # some chat templates put the opening tag into the prompt
        answer = after.strip()
    while answer.startswith(OPEN):
        answer = answer.partition(CLOSE)[2].strip()
    return answer
