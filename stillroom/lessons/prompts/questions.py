"""What a source of prompts gives: a question, and what is known about its answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from stillroom.contracts.records import Message, content_key

Check = Literal["text", "json", "number", "maths", "choice", "code", "tools", "quotes"]
"""How an answer is held against the reference.

`text`: to the letter. `json`: field by field. `number`: the final number. `maths`: the final expression. `choice`: a
letter. `code`: the reference is {"test", "entry_point", "prompt"} in JSON. `tools`: it is the list of right calls in
JSON. `quotes`: what the answer quotes stands in the document.
"""


@dataclass(frozen=True)
class Question:
    """One question of a source; a line of prompts/prompts.jsonl holds its fields beside those of a Prompt."""

    messages: list[Message]
    reference: str | None = None
    """The right answer."""
    check: Check | None = None
    """How to hold an answer against the reference, where the source's form says it."""
    solution: str | None = None
    """The source's own worked answer, where it gives one beside the reference."""
    tools: list[dict[str, Any]] | None = None
    """Declarations of the tools that may be called, in OpenAI's form."""
    tool_choice: str | dict[str, Any] | None = None
    """Which of them must be called, in OpenAI's form."""
    response_format: dict[str, Any] | None = None
    """The form that the answer must have, in OpenAI's form."""
    document: str | None = None
    """The text that the answer must be drawn from."""
    answer: Message | None = None
    """What a model answered already: an assistant's turn of a log."""
    answered_by: str | None = None
    """The model that gave that answer."""
    finish: str | None = None
    """Why that answer ended, in OpenAI's words."""
    method: str | None = None
    """How the teacher was asked to invent the question."""
    stem: str | None = None
    """A multiple choice without its options."""
    options: list[str] | None = None
    """Their words, without the letters."""
    stratum: str = ""
    """The value of the column that the source is stratified by."""

    def extras(self) -> dict[str, Any]:
        """The fields that a Prompt does not have, without empty ones."""
        known = {"messages", "reference"}
        return {
            key: value for key, value in vars(self).items() if key not in known and value not in (None, "")
        }

    def with_stratum(self, value: object) -> Question:
        """The question in a stratum."""
        return replace(self, stratum=str(value))


def user_text(messages: Iterable[Message]) -> str:
    """What the user says in a conversation, or where a text without one stands."""
    return " ".join(message["content"] for message in messages if message["role"] in ("user", "source"))


def conversation_key(messages: Iterable[Message]) -> str:
    """A key under which the same request is recognised whatever its case and spacing: all turns count, and what tools said,
    so that the steps of one conversation in a log are different requests."""
    return content_key(
        [(message["role"], _plain(message.get("content")), message.get("tool_calls")) for message in messages]
    )


def question_key(messages: Iterable[Message]) -> str:
    """A key under which the same question is recognised whatever its case and spacing."""
    return content_key(_plain(user_text(messages)))


def _plain(text: str | None) -> str:
    return " ".join((text or "").casefold().split())
