"""Conversations as text: what a chat template makes of them, and where in it the last turn's answer begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from jinja2.exceptions import TemplateError

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Message

Tools: TypeAlias = Sequence[dict[str, Any]]
"""Declarations of tools, in OpenAI's form."""

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
"""What a template's own code can end in: its own refusals, and those of Python and of Jinja's sandbox where it
adds and counts what it takes for text."""
THINK = "<think>"
_CLOSE_THINK = "</think>"


class ChatTemplate:
    """Writes conversations as text; without a template, a plain language model's, the contents follow one another.

    Args:
        tokenizer: whose template it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.plain: bool = tokenizer.chat_template is None

    def text(self, messages: Sequence[Message], tools: Tools | None = None, *, prompt: bool) -> str:
        """A conversation as the model reads it; with `prompt`, up to where its answer begins.

        Raises:
            ModelError: the template refuses the conversation or the tools.
        """
        if self.plain:
            return "".join(message.get("content") or "" for message in messages)
        try:
            return self._tokenizer.apply_chat_template(
                [_as_templates_expect(message) for message in messages],
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TEMPLATE_ERRORS as error:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} refuses a conversation",
                got=f"{error}; roles {', '.join(message['role'] for message in messages)}",
                expected="roles that the template knows, in its order; tools in OpenAI's form",
                do="leave out the system prompt, or use a model whose template has one",
            ) from error

    def prompt_and_full(self, messages: Sequence[Message], tools: Tools | None) -> tuple[str, str]:
        """What comes before the last turn's answer, and all of it; the second begins with the first.

        Raises:
            ModelError: the template refuses the conversation or the tools.
        """
        *before, last = messages
        content: str = last.get("content") or ""
        prompt = self.text(before, tools, prompt=True)
        if self.plain:
            return prompt, prompt + content
        full = self.text(messages, tools, prompt=False)
        if full.startswith(prompt) and content.strip() in full[len(prompt) :]:
            return prompt, full
        # Templates that open <think> in the prompt, or that drop or rewrite reasoning: the answer stays as it was.
        calls = ""
        if last.get("tool_calls"):
            content, calls = self._calling(messages, tools, prompt)
        if prompt.rstrip().endswith(THINK):
            content = content.removeprefix(THINK).lstrip("\n")
        return prompt, prompt + content + calls

    def _calling(self, messages: Sequence[Message], tools: Tools | None, prompt: str) -> tuple[str, str]:
        """The last turn's reasoning as it stands, and what the template makes of the rest of it, its calls included."""
        content: str = messages[-1].get("content") or ""
        said = content.rpartition(_CLOSE_THINK)[2].lstrip("\n")
        thought = content[: len(content) - len(said)]
        full = self.text([*messages[:-1], {**messages[-1], "content": said}], tools, prompt=False)
        begun = prompt.rstrip()
        begun = begun.removesuffix(THINK) if begun.endswith(THINK) else prompt
        return (thought, full[len(begun) :]) if full.startswith(begun) else (content, "")


def _as_templates_expect(message: Message) -> Message:
    """A turn without empty fields, its content text, and the arguments of its calls objects.

    OpenAI's form has null for the content of a pure call, and the arguments as JSON text, which templates that write them
    as JSON would quote a second time.
    """
    turn = {"content": "", **{key: value for key, value in message.items() if value is not None}}
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [_with_read_arguments(call) for call in calls]
    return turn


def _with_read_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
