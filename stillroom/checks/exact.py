"""Is the answer's text the right one, to the letter?"""

from __future__ import annotations

from stillroom.checks.reasoning import strip_reasoning


def equal_text(answer_text: str, reference_text: str) -> bool:
    """Whether both texts are the same once reasoning and outer whitespace are taken off."""
    return strip_reasoning(answer_text) == strip_reasoning(reference_text)
