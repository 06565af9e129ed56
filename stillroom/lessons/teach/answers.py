"""From a teacher's reply to the turn that a student learns."""

from __future__ import annotations

import re
from typing import Any

from stillroom.checks.reasoning import CLOSE, OPEN, strip_reasoning
from stillroom.contracts.records import Message, Reply
from stillroom.models.chat_completions import ChatReply

_THOUGHT = re.compile(rf"{OPEN}(.*?){CLOSE}\n?(.*)", re.DOTALL)


def assistant_turn(reply: Reply) -> Message:
    """A reply as the last turn of its conversation: `content`, and apart from it `reasoning_content` and `tool_calls`.

    Reasoning comes apart from the API, or in <think> tags at the start of the text. Only a line break after the closing
    tag is taken off, so that `lesson_messages` gives the text back to the letter.
    """
    turn: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning and OPEN not in reply.text:
        turn |= {"content": reply.text.lstrip(), "reasoning_content": reply.reasoning.strip()}
    elif thought := _THOUGHT.fullmatch(reply.text):
        turn |= {"content": thought[2], "reasoning_content": thought[1]}
    if isinstance(reply, ChatReply) and reply.tool_calls:
        turn["tool_calls"] = reply.tool_calls
    return turn


def lesson_messages(messages: list[Message], *, reasoning: bool) -> list[Message]:
    """An answered conversation as the student learns it: with the reasoning of its last turn in <think> tags, or without."""
    *before, last = messages
    turn = {key: value for key, value in last.items() if key != "reasoning_content"}
    thought, content = last.get("reasoning_content"), last["content"] or ""  # none where a tool is called
    if not reasoning:
        turn["content"] = strip_reasoning(content)
    elif thought:
        turn["content"] = f"{OPEN}{thought}{CLOSE}\n{content}"
    return [*before, turn]
