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
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import SOURCE, Message
from stillroom.models.templates import ChatTemplate, Tools

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


@dataclass(frozen=True)
class Branches:
    """A prompt that may go on in several ways, as tokens."""

    ids: list[int]
    """What all ways have in common, at least one token."""
    tails: list[list[int]]
    """How each goes on, at least one token."""
    given: list[int]
    """How many of a tail's first tokens still belong to the prompt; hardly ever any."""

    @property
    def selected(self) -> int:
        """How many tokens are to be predicted."""
        return sum(map(len, self.tails)) - sum(self.given)

    @property
    def rows(self) -> list[Rendered]:
        """Each way as a conversation of its own."""
        return [
            Rendered(self.ids + tail, [False] * (len(self.ids) + given) + [True] * (len(tail) - given))
            for tail, given in zip(self.tails, self.given, strict=True)
        ]


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
        self._template = ChatTemplate(tokenizer)
        self.plain = self._template.plain
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
        return self._opening + self._encode(self._template.text(messages, tools, prompt=True))["input_ids"]

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
        prompt, full = self._template.prompt_and_full(messages, tools)
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

    def branches(
        self, messages: Sequence[Message], answers: Sequence[str], tools: Tools | None = None
    ) -> Branches:
        """A conversation with each of several answers, no end of a turn after them.

        A plain language model's answer follows after a space.

        Raises:
            ModelError: the chat template refuses the conversation or the tools.
        """
        space = " " if self.plain else ""
        rows = [
            self.lesson([*messages, {"role": "assistant", "content": space + answer}], False, tools)
            for answer in answers
        ]
        starts = [row.mask.index(True) for row in rows]
        common = next(
            (
                place
                for place, tokens in enumerate(zip(*(row.ids for row in rows), strict=False))
                if len({*tokens}) > 1
            ),
            min(starts),
        )
        common = min(common, *starts)
        tails = [row.ids[common:] for row in rows]
        return Branches(rows[0].ids[:common], tails, [start - common for start in starts])

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

    def _encode(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, **options)

    def _end_of_turn(self) -> int | None:
        """The special token that the template writes right after an assistant's content."""
        try:
            turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _PROBE}]
            after = self._template.text(turns, prompt=False).rpartition(_PROBE)[2]
        except ModelError:
            return self.tokenizer.eos_token_id
        ids = self._encode(after)["input_ids"]
        special = self.tokenizer.all_special_ids
        added = self.tokenizer.added_tokens_decoder
        return ids[0] if ids and (ids[0] in special or ids[0] in added) else self.tokenizer.eos_token_id


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
