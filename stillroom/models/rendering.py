"""Conversations as token ids: what a model is shown, and which of its tokens are learned.

Everything that turns messages into tokens comes through here, so that teacher, student and signals agree on every
position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, GenerationConfig

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Message

Tools: TypeAlias = Sequence[dict[str, Any]]
"""Declarations of tools, in OpenAI's form."""

THINK = "<think>"
_CLOSE_THINK = "</think>"
SOURCE = "source"
"""The role of a turn that says where a text stands. It is shown to no model: what follows it is read as plain text."""
_PROBE = "stillroom"


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    `mask[j]` says that token j is to be predicted, from the logits at j - 1; `mask[0]` is never True.
    """

    ids: list[int]
    mask: list[bool]

    @property
    def selected(self) -> int:
        """How many tokens are to be predicted."""
        return sum(self.mask)


class Renderer:
    """Renders conversations with one tokenizer and its chat template.

    A tokenizer without a chat template belongs to a plain language model: the contents follow one another, after
    the beginning-of-sequence token where the tokenizer adds one.

    Args:
        tokenizer: a fast tokenizer; character offsets are needed.
        more_eos_ids: ids that end a turn besides the tokenizer's own, as a model's generation config lists them.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, more_eos_ids: Iterable[int] = ()) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} cannot tell where its tokens lie in the text",
                got=type(tokenizer).__name__,
                expected="a fast tokenizer (tokenizer.json)",
                do="save the model with AutoTokenizer.from_pretrained(..., use_fast=True)",
            )
        self.tokenizer = tokenizer
        self.plain = tokenizer.chat_template is None
        self.end_of_turn = tokenizer.eos_token_id if self.plain else self._end_of_turn()
        own = {tokenizer.eos_token_id, self.end_of_turn, *more_eos_ids}
        self.eos_ids = frozenset(token for token in own if token is not None)
        """Any of these ends an answer."""

    @staticmethod
    def load(reference: Path | str, *, trust_remote_code: bool = False) -> Renderer:
        """The renderer of a model or tokenizer folder, or of a hub id.

        Raises:
            ModelError: there is no usable tokenizer.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(reference), trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever the library, a tokenizer's own code or the network raises
            raise ModelError(
                f"the tokenizer of {reference} cannot be loaded",
                got=str(error).strip().partition("\n")[0] or type(error).__name__,
                expected="a Hugging Face folder with tokenizer.json, or a hub id that can be reached",
                do="check the name, the network and, for a gated model, that you are logged in",
            ) from error
        return Renderer(tokenizer, _generation_eos(reference))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's head may be padded beyond it."""
        return len(self.tokenizer)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Equal for tokenizers that give equal ids to every text, however they were saved."""
        tree = json.loads(self.tokenizer.backend_tokenizer.to_str())
        added = [(token["id"], token["content"]) for token in tree["added_tokens"]]
        return _hash([added, tree["normalizer"], tree["pre_tokenizer"], tree["model"]])

    @cached_property
    def template_hash(self) -> str:
        """Equal for equal chat templates."""
        return _hash(self.tokenizer.chat_template)

    @cached_property
    def _beginning(self) -> list[int]:
        """The beginning-of-sequence token where the tokenizer adds one."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and bos in self.tokenizer("").input_ids else []

    @property
    def _opening(self) -> list[int]:
        """What comes before a conversation; templates write theirs as text."""
        return self._beginning if self.plain else []

    def prompt_ids(self, messages: Sequence[Message], tools: Tools | None = None) -> list[int]:
        """What a model is shown before it answers.

        Args:
            messages: the conversation so far.
            tools: declarations of what may be called, in OpenAI's form; a template that has no place for them leaves
                them out.

        Raises:
            ModelError: the chat template refuses the conversation or the tools.
        """
        return self._opening + self._encode(self._text(messages, tools, prompt=True))["input_ids"]

    def lesson(
        self, messages: Sequence[Message], complete: bool = True, tools: Tools | None = None
    ) -> Rendered:
        """A whole conversation, with its last turn, the assistant's, to be predicted.

        Prompt and completion are tokenised together. From the first completion token to the end-of-turn token all
        is predicted; what the template writes after that is cut off. Where a turn has the role SOURCE, the last one is
        no answer but a text, as `text` renders it.

        Args:
            messages: the conversation; its last turn is the assistant's.
            complete: False for an answer that was cut short: it ends without an end-of-turn token.
            tools: as of `prompt_ids`.

        Raises:
            ModelError: the chat template refuses the conversation or the tools.
        """
        if any(message["role"] == SOURCE for message in messages):
            return self.text(messages[-1]["content"])
        prompt, full = self._prompt_and_full(messages, tools)
        encoded = self._encode(full, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        start = next(
            (j for j, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)), len(ids)
        )
        last = next((j for j in range(len(ids) - 1, start - 1, -1) if ids[j] in self.eos_ids), None)
        ids = ids[:last]
        if complete and self.end_of_turn is not None:
            ids.append(encoded["input_ids"][last] if last is not None else self.end_of_turn)
        ids, start = self._opening + ids, max(1, len(self._opening) + start)
        return Rendered(ids, [j >= start for j in range(len(ids))])

    def text(self, text: str) -> Rendered:
        """A text without a chat template or an end: all is predicted but the first token, which nothing precedes."""
        ids = [*self._beginning, *self._encode(text)["input_ids"]]
        return Rendered(ids, [place > 0 for place in range(len(ids))])

    def token_starts(self, text: str) -> list[int]:
        """At which character each of a text's tokens begins; without the beginning-of-sequence token."""
        return [start for start, _ in self._encode(text, return_offsets_mapping=True)["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def answer_text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """The text of an answer's token ids (end-of-turn token included or not) as it belongs in a message.

        A plain model's answer continues its prompt's text, so a leading space, which SentencePiece tokenizers drop
        at the start of a text, is kept.
        """
        if answer and answer[-1] in self.eos_ids:
            answer = answer[:-1]
        if not self.plain:
            return self.decode(answer)
        context = self.decode(prompt[-8:])
        return self.decode([*prompt[-8:], *answer])[len(context) :]

    def _prompt_and_full(self, messages: Sequence[Message], tools: Tools | None) -> tuple[str, str]:
        *before, last = messages
        content: str = last.get("content") or ""
        prompt = self._text(before, tools, prompt=True)
        if self.plain:
            return prompt, prompt + content
        full = self._text(messages, tools, prompt=False)
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
        full = self._text([*messages[:-1], {**messages[-1], "content": said}], tools, prompt=False)
        begun = prompt.rstrip()
        begun = begun.removesuffix(THINK) if begun.endswith(THINK) else prompt
        return (thought, full[len(begun) :]) if full.startswith(begun) else (content, "")

    def _text(self, messages: Sequence[Message], tools: Tools | None = None, *, prompt: bool) -> str:
        if self.plain:
            return "".join(message.get("content") or "" for message in messages)
        try:
            return self.tokenizer.apply_chat_template(
                [_as_templates_expect(message) for message in messages],
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        # Besides their own refusals, templates add and count what they take for text.
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template of {self.tokenizer.name_or_path} refuses a conversation",
                got=f"{error}; roles {', '.join(message['role'] for message in messages)}",
                expected="roles that the template knows, in its order; tools in OpenAI's form",
                do="leave out the system prompt, or use a model whose template has one",
            ) from error

    def _encode(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, **options)

    def _end_of_turn(self) -> int | None:
        """The special token that the template writes right after an assistant's content."""
        try:
            turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _PROBE}]
            after = self._text(turns, prompt=False).rpartition(_PROBE)[2]
        except ModelError:
            return self.tokenizer.eos_token_id
        ids = self._encode(after)["input_ids"]
        special = self.tokenizer.all_special_ids
        added = self.tokenizer.added_tokens_decoder
        return ids[0] if ids and (ids[0] in special or ids[0] in added) else self.tokenizer.eos_token_id


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


def _generation_eos(reference: Path | str) -> list[int]:
    """The ids that a model's generation config, where there is one, lists as its ends."""
    try:
        eos = GenerationConfig.from_pretrained(str(reference)).eos_token_id
    except OSError:
        return []
    return eos if isinstance(eos, list) else [eos] if eos is not None else []


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
