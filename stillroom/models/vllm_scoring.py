"""vLLM reads given texts: the most probable tokens at every place of a prompt, by its `prompt_logprobs`.

This is an extension of vLLM's to /v1/completions. The prompt goes as token ids, so that nothing is tokenised twice; one
token is generated, since the server insists, and thrown away. For each place but the first the server lists the k most
probable tokens and the prompt's own, under their ids, with natural logarithms of probabilities at temperature 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NoReturn, TypeAlias, TypeVar

import aiohttp
import torch
from torch import Tensor

from stillroom.contracts.errors import ModelError, ServiceFault
from stillroom.models.endpoint import Endpoint
from stillroom.models.rendering import Branches, Rendered, Renderer
from stillroom.models.retrying import ATTEMPTS, Passing, fault_of, until_it_works

MOST = 20
"""Tokens a place that vLLM lists unless it was started with a larger --max-logprobs."""
_AHEAD = 4
"""Requests prepared for each one in flight."""
_COMPARED = 256
"""Tokens whose texts are compared before server and tokenizer are taken to mean the same by an id."""
_STRANGE = 0.1
_ROUNDING = 1e-3
Entries = dict[str, dict[str, Any]]
T = TypeVar("T")
_Read: TypeAlias = Callable[[Sequence[int], Sequence[Entries]], T]
"""What is made of a text's own tokens and of what is listed at their places."""


class VllmScorer:
    """Tells the most probable tokens at the places of given texts, or how probable the texts' own are.

    Args:
        endpoint: where vLLM's server is.
        model: the model's name there.
        renderer: whose token ids the rows hold; the server's must be the same, and its texts are compared.
        top: tokens a place; more than the server allows is refused by it.
        concurrency: requests in flight.
        timeout: seconds for one answer.
        first_wait: seconds before the first retry; they double from there.
        instead: what to do, said of a server that cannot.
    """

    context: int | None = None
    """Tokens that it reads at once, which the server says only when there are more."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        renderer: Renderer,
        *,
        top: int = MOST,
        concurrency: int = 16,
        timeout: float = 600.0,
        first_wait: float = 1.0,
        instead: str = "set teach.signal.source to top_logprobs",
    ) -> None:
        self.endpoint, self.model, self.renderer, self.top = endpoint, model, renderer, top
        self._concurrency, self._first_wait = concurrency, first_wait
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 30))
        self._url = f"{endpoint.url}/completions"
        self._compared = 0
        self._instead = instead

    def top_logprobs(self, rows: Iterable[Rendered]) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's most probable tokens wherever a row's mask is set.

        Args:
            rows: read a bounded number ahead.

        Yields:
            For each row, in order, ids int64 and natural log-probabilities float64, `[selected, top]`, in falling
            order; places with fewer tokens are filled up with minus infinity under ids that are not listed there.

        Raises:
            TeacherError: the server does not do this, or not with these settings.
            ModelError: its token ids mean other texts.
            ServiceFault: it keeps failing.
        """
        return self._each(rows, lambda own, entries: self._tensors(entries))

    def logprobs(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """How probable a row's own tokens are wherever its mask is set.

        Yields:
            For each row, in order, natural log-probabilities float64 `[selected]`.

        Raises:
            As `top_logprobs`.
        """
        return self._each(rows, self._own)

    def rank(self, questions: Iterable[Branches]) -> Iterator[list[float]]:
        """How likely each of several answers is, as `LocalModel.rank`; errors as `top_logprobs`."""
        remaining = iter(questions)
        while window := list(islice(remaining, self._concurrency)):
            sums = (float(one.sum()) for one in self.logprobs(row for asked in window for row in asked.rows))
            for asked in window:
                yield list(islice(sums, len(asked.tails)))

    def check(self) -> None:
        """Have a text of two tokens read, so that a server that cannot is refused before anything else is asked of it.

        Raises:
            As `top_logprobs`.
        """
        ids = (self.renderer.text("Yes.").ids * 2)[:2]
        list(self.logprobs([Rendered(ids, [False, True])]))

    def _each(self, rows: Iterable[Rendered], read: _Read[T]) -> Iterator[T]:
        remaining = iter(rows)
        with asyncio.Runner() as runner:
            while window := list(islice(remaining, _AHEAD * self._concurrency)):
                yield from runner.run(self._window(window, read))

    async def _window(self, rows: Sequence[Rendered], read: _Read[T]) -> list[T]:
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        async with aiohttp.ClientSession(
            headers=self.endpoint.headers, timeout=self._timeout, connector=connector
        ) as session:
            places = asyncio.Semaphore(self._concurrency)
            tasks = [asyncio.ensure_future(self._row(session, places, row, read)) for row in rows]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def _row(
        self, session: aiohttp.ClientSession, places: asyncio.Semaphore, row: Rendered, read: _Read[T]
    ) -> T:
        selected = [place for place, wanted in enumerate(row.mask) if wanted]
        if not selected:
            return read([], [])
        async with places:
            listed = _listed(await self._ask(session, row))
        if listed is None or len(listed) != len(row.ids):
            self.endpoint.refuse(
                "gives no log-probabilities of prompts",
                f"{'no' if listed is None else len(listed)} prompt_logprobs for {len(row.ids)} tokens",
                f"use vLLM's own server, or {self._instead}",
            )
        entries = [listed[place] or {} for place in selected]
        own = [row.ids[place] for place in selected]
        self._compare(own, entries)
        return read(own, entries)

    async def _ask(self, session: aiohttp.ClientSession, row: Rendered) -> Any:
        body = {
            "model": self.model,
            "prompt": row.ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self.top,
        }
        once = partial(self._once, session, body)
        try:
            return await until_it_works(once, self.endpoint, first_wait=self._first_wait)
        except Passing as fault:
            raise ServiceFault(
                f"the teacher at {self.endpoint.url} keeps failing to read a text",
                got=f"{ATTEMPTS} times, at last: {fault}",
                do="look at the server, then run the same command again: what was captured is kept",
            ) from None

    async def _once(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Any:
        async with session.post(self._url, json=body) as response:
            if response.status == 200:
                return await response.json(content_type=None)
            refuse = partial(self._refuse, len(body["prompt"]))
            raise await fault_of(response, self.endpoint, refuse)

    def _refuse(self, tokens: int, status: int, said: str) -> NoReturn:
        """Raise TeacherError: no retry mends this."""
        if status in (404, 405):
            self.endpoint.refuse(
                f"does not know the model {self.model}, or has no /completions",
                said,
                f"check teacher.model and teacher.api; {self.endpoint.url}/models lists what is there; or {self._instead}",
            )
        self.endpoint.refuse(
            f"does not read a text of {tokens:,} tokens for {self.top} log-probabilities a place",
            said,
            f"start vLLM with --max-logprobs {self.top}, set distil.max_length to less than its context, or {self._instead}",
        )

    def _compare(self, own: Sequence[int], entries: Sequence[Entries]) -> None:
        """Refuse a server whose ids mean other texts: its signals would be another language's."""
        if self._compared >= _COMPARED:
            return
        theirs: list[Any] = [
            entry.get(str(token), {}).get("decoded_token") for token, entry in zip(own, entries, strict=True)
        ]
        if None not in theirs:
            ours = self.renderer.tokenizer.batch_decode([[token] for token in own])
            strange = sum(not _same(a, b) for a, b in zip(ours, theirs, strict=True))
            self._compared += len(own)
            if strange <= _STRANGE * len(own):
                return
            got = f"{strange} of {len(own)} tokens are other texts there"
        else:
            got = "a list without the prompt's own token"
        raise ModelError(
            f"the teacher at {self.endpoint.url} and the student do not mean the same by a token's id",
            got=got,
            expected="the student's tokenizer at the server",
            do="choose a student of the teacher's family, or learn from its text alone: "
            "distil.loss: {hard: 1, soft: 0} and teach.signal.kind: none; where it is only measured, name its tokenizer",
        )

    def _own(self, own: Sequence[int], entries: Sequence[Entries]) -> Tensor:
        found = [
            float(entry.get(str(token), {}).get("logprob", torch.nan))
            for token, entry in zip(own, entries, strict=True)
        ]
        logprobs = torch.tensor(found, dtype=torch.float64)
        if bool((~(logprobs <= _ROUNDING)).any()):
            self._no_logprobs(f"{float(logprobs.max()):.4f} for a token of the text")
        return logprobs

    def _no_logprobs(self, got: str) -> NoReturn:
        self.endpoint.refuse(
            "gives numbers that are no log-probabilities",
            got,
            "start vLLM without --logprobs-mode, so that it gives raw_logprobs",
        )

    def _tensors(self, entries: Sequence[Entries]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(entries), self.top, dtype=torch.int64)
        logprobs = torch.full((len(entries), self.top), -torch.inf, dtype=torch.float64)
        for place, entry in enumerate(entries):
            found = [(float(one["logprob"]), int(token)) for token, one in entry.items()]
            # The prompt's own token comes beside the k; ids beyond the tokenizer are padding of the head.
            found = [pair for pair in found if pair[1] < self.renderer.vocab_size]
            best = sorted(found, key=lambda pair: (-pair[0], pair[1]))[: self.top]
            used = {token for _, token in best}
            spare = (token for token in range(2 * self.top) if token not in used)
            ids[place] = torch.tensor(
                [token for _, token in best] + list(islice(spare, self.top - len(best)))
            )
            logprobs[place, : len(best)] = torch.tensor([value for value, _ in best], dtype=torch.float64)
        if bool((~(logprobs.exp().sum(-1) <= 1 + _ROUNDING)).any()):
            self._no_logprobs(f"probabilities that sum to {float(logprobs.exp().sum(-1).max()):.4f}")
        return ids, logprobs


def _listed(told: Any) -> list[Entries | None] | None:
    """The list of a response, a place each; where older servers put it too."""
    if not isinstance(told, dict):
        return None
    choice: dict[str, Any] = next(iter(told.get("choices") or []), {})
    found = choice.get("prompt_logprobs") or told.get("prompt_logprobs")
    return found if isinstance(found, list) else None


def _same(ours: str, theirs: str) -> bool:
    """Whether two texts are one token's. Parts of a character have no text; some tokenizers mark the space before a word."""
    if "\ufffd" in ours or "\ufffd" in theirs:
        return True
    return ours.strip() == theirs.replace("\u2581", " ").replace("\u0120", " ").strip()
