"""Where a model's reasoning ends and its answer begins."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

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


def reasoning_length(count: int, text: Callable[[int], str]) -> int:
    """How many of an answer's `count` tokens are its reasoning, the closing tag included; 0 where none is closed.

    Args:
        count: tokens of the answer.
        text: what its first n tokens say.
    """
    closed = text(count).count(CLOSE)
    return bisect_left(range(count), closed, key=lambda n: text(n).count(CLOSE)) if closed else 0
