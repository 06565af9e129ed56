"""A GGUF file in this process: it answers, and it tells the logits of given texts, as `LocalModel` does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.llama_cpp_context import Context
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.rendering import Rendered, Renderer
from stillroom.models.rows import Row, answer_rows
from stillroom.models.sampling import draw

_WINDOW = 8
_BATCH_TOKENS = 512


class GgufModel:
    """A causal language model from a .gguf file; implements `Answerer`.

    Args:
        path: the file.
        renderer: of the model that the file was made from; its token ids must be the file's.
        parallel: answers written together.
        threads: CPU threads; default every core this process may use.

    Raises:
        ModelError: the file cannot be loaded, or the renderer has more tokens than the file.
    """

    def __init__(
        self, path: str | Path, *, renderer: Renderer, parallel: int = 16, threads: int | None = None
    ) -> None:
        self.name = str(path)
        self.renderer = renderer
        self.parallel = parallel
        self.llama = LlamaCpp(path, threads=threads)
        self.vocab_size = self.llama.metadata.vocab_size
        """Width of the logits; the head may be padded beyond the tokenizer."""
        if self.vocab_size < renderer.vocab_size:
            self.llama.close()
            raise ModelError(
                f"the tokenizer does not fit {path}",
                got=f"{renderer.vocab_size:,} tokens for a file of {self.vocab_size:,}",
                expected="the tokenizer that the file was made with",
                do="name its folder or hub id in teacher.tokenizer",
            )

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply as it is done; like `LocalModel.answer`.

        Raises:
            ModelError: the chat template refuses a conversation.
        """
        yield from answer_rows(
            requests,
            sampling,
            renderer=self.renderer,
            context=self.llama.n_ctx,
            window=_WINDOW * self.parallel,
            generate=lambda rows: self._generate(rows, sampling),
        )

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """What the model thought at every token to be predicted.

        Args:
            rows: rendered conversations, read a bounded window ahead.

        Yields:
            For each row, in order, float32 [selected, vocab_size]: the logits that predict its masked tokens.

        Raises:
            DataError: a row is longer than the model's context.
        """
        remaining = iter(rows)
        while window := list(islice(remaining, _WINDOW * self.parallel)):
            for row, logits in zip(window, self.llama.logits_batch([row.ids for row in window]), strict=True):
                # The logits at position j predict token j + 1.
                yield torch.from_numpy(logits[:-1][np.array(row.mask[1:], np.bool_)])

    def close(self) -> None:
        """Free the weights."""
        self.llama.close()

    def _generate(self, rows: list[Row], sampling: Sampling) -> Iterator[Row]:
        """Continue rows, a finished one giving its place to the next; they come back as they finish."""
        if not rows:
            return
        parallel = min(self.parallel, len(rows))
        cells = max(len(row.prompt) + row.limit for row in rows)
        # llama.cpp rounds each sequence's share up to 256 cells.
        context = self.llama._context(
            cells=-(-cells // 256) * 256 * parallel, sequences=parallel, batch=max(_BATCH_TOKENS, parallel)
        )
        try:
            yield from _decode(
                context,
                rows,
                sampling,
                parallel=parallel,
                vocab=self.renderer.vocab_size,
                eos_ids=self.renderer.eos_ids,
            )
        finally:
            context.close()


@dataclass(eq=False)
class _Place:
    """A sequence of the context, the row in it, and the row's tokens that have not been read yet."""

    sequence: int
    row: Row
    unread: list[int]
    position: int = 0


def _decode(
    context: Context,
    rows: list[Row],
    sampling: Sampling,
    *,
    parallel: int,
    vocab: int,
    eos_ids: frozenset[int],
) -> Iterator[Row]:
    waiting = iter(rows)
    free = list(range(parallel))
    places: list[_Place] = []
    while True:
        for row in islice(waiting, len(free)):
            row.begun = time.perf_counter()
            context.forget(free[-1])
            places.append(_Place(free.pop(), row, row.prompt))
        if not places:
            return
        ready, logits = _read(context, places)
        if not ready:
            continue
        seeds = torch.tensor([place.row.seed for place in ready])
        steps = torch.tensor([len(place.row.ids) for place in ready])
        tokens, logprobs = draw(torch.from_numpy(logits[:, :vocab]), seeds, steps, sampling)
        for place, token, logprob in zip(ready, tokens.tolist(), logprobs.tolist(), strict=True):
            place.row.add(token, logprob)
            place.unread = [token]
            if place.row.done(eos_ids):
                places.remove(place)
                free.append(place.sequence)
                yield place.row


def _read(context: Context, places: list[_Place]) -> tuple[list[_Place], np.ndarray]:
    """Read what is unread, as far as one batch goes; those who write come before long prompts.

    Returns:
        The places with nothing left unread, and the logits of their next tokens, float32 [places, vocab].
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    wanted: list[bool] = []
    ready = []
    for place in sorted(places, key=lambda place: len(place.unread)):
        piece = place.unread[: context.batch_size - len(tokens)]
        if not piece:
            break
        place.unread = place.unread[len(piece) :]
        tokens += piece
        positions += range(place.position, place.position + len(piece))
        sequences += [place.sequence] * len(piece)
        wanted += [False] * (len(piece) - 1) + [not place.unread]
        place.position += len(piece)
        if not place.unread:
            ready.append(place)
    return ready, context.decode(tokens, positions, sequences, wanted)
