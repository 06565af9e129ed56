"""Speculative decoding measured: how much of what a draft writes ahead its model accepts, and what that gains.

A draft proposes several tokens, the model reads them in one pass and keeps those that it would have written itself
(Leviathan et al. 2023, arXiv 2211.17192), so that answers stay the model's own. A distilled student is a draft made for
its teacher. Both run in llama.cpp's server, as they will.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import ModelError, ServiceFault
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Message
from stillroom.models.llama_cpp_server import LlamaServer

_SECONDS = 600


@dataclass(frozen=True)
class Speculation:
    """What came of it, over all conversations, greedily and one at a time."""

    drafted: int
    """Tokens that the draft proposed."""
    accepted: int
    """Of these, tokens that the model would have written too."""
    tokens: int
    """Tokens that were written."""
    seconds: float
    seconds_alone: float
    """Without a draft."""
    same: int
    """Conversations whose answer is the same to the letter with and without; rounding tips the others."""
    conversations: int

    @property
    def acceptance(self) -> float:
        """Share of proposed tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def speedup(self) -> float:
        """How many times as fast the model is with the draft."""
        return self.seconds_alone / self.seconds if self.seconds else 0.0


def speculate(
    model: Path,
    draft: Path,
    conversations: Sequence[Sequence[Message]],
    *,
    draft_tokens: int,
    max_new_tokens: int,
    context: int,
    meter: Meter,
    threads: int | None = None,
) -> Speculation:
    """Have a model answer conversations alone and with a draft.

    Args:
        model: the .gguf file that decides.
        draft: the .gguf file that writes ahead.
        conversations: each ends with a user's turn.
        draft_tokens: how many tokens are written ahead at most.
        max_new_tokens: of an answer.
        context: tokens of a conversation with its answer.
        meter: advanced by one an answer, twice over.
        threads: of the server; default what llama.cpp finds best.

    Raises:
        ModelError: a file that llama.cpp refuses, or a draft that it cannot use with this model.
        ServiceFault: the server fails.
    """
    found: list[list[dict[str, Any]]] = []
    for ahead in (None, draft):
        with LlamaServer(
            model, n_ctx=context, parallel=1, threads=threads, draft=ahead, draft_tokens=draft_tokens
        ) as server:
            replies = []
            for messages in conversations:
                replies.append(_ask(server, messages, max_new_tokens))
                meter.advance(1)
        found.append(replies)
    alone, together = found
    if not any("draft_n" in reply["timings"] for reply in together):
        raise ModelError(
            "llama.cpp does not use this draft",
            got=draft,
            expected=f"a model with the tokens of {model.name}",
            do="leave export.draft out; a draft must share its model's tokens",
        )

    def total(replies: list[dict[str, Any]], name: str) -> float:
        return sum(reply["timings"].get(name, 0) for reply in replies)

    return Speculation(
        drafted=int(total(together, "draft_n")),
        accepted=int(total(together, "draft_n_accepted")),
        tokens=int(total(together, "predicted_n")),
        seconds=total(together, "predicted_ms") / 1000,
        seconds_alone=total(alone, "predicted_ms") / 1000,
        same=sum(one["choices"] == other["choices"] for one, other in zip(alone, together, strict=True)),
        conversations=len(conversations),
    )


def _ask(server: LlamaServer, messages: Sequence[Message], max_new_tokens: int) -> dict[str, Any]:
    body = {"messages": list(messages), "max_tokens": max_new_tokens, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            return json.load(reply)
    except (OSError, ValueError) as error:
        said = (
            error.read().decode(errors="replace")[:200] if isinstance(error, urllib.error.HTTPError) else ""
        )
        raise ServiceFault(
            "llama.cpp's server did not answer",
            got=f"{server.path.name}: {error} {said}".strip(),
            do="run again; where the context is too small, raise export.context",
        ) from error
