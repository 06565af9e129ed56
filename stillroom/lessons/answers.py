"""From a teacher's reply to the turn that a student learns."""

from __future__ import annotations

from stillroom.checks.reasoning import strip_reasoning
from stillroom.contracts.records import Message, Reply


def assistant_turn(reply: Reply) -> str:
    """The whole text of a reply: reasoning that an API kept apart comes back in <think> tags before the answer."""
    if reply.reasoning and "<think>" not in reply.text:
        return f"<think>{reply.reasoning.strip()}</think>\n{reply.text.lstrip()}"
    return reply.text


def lesson_messages(messages: list[Message], *, reasoning: bool) -> list[Message]:
    """An answered conversation as the student learns it, with or without the reasoning in its last turn."""
    if reasoning:
        return messages
    *before, last = messages
    return [*before, {**last, "content": strip_reasoning(last["content"])}]
