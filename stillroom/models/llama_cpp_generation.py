"""Batched generation with llama.cpp: many rows in one context, a finished one giving its place to the next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from stillroom.contracts.records import Sampling
from stillroom.models.llama_cpp_context import Context
from stillroom.models.rows import Row
from stillroom.models.sampling import draw


@dataclass(eq=False)
class _Place:
    """A sequence of the context, the row in it, and the row's tokens that have not been read yet."""

    sequence: int
    row: Row
    unread: list[int]
    position: int = 0


def decode(
    context: Context,
    rows: Iterable[Row],
    sampling: Sampling,
    *,
    sequences: int,
    vocab: int,
    eos_ids: Set[int],
) -> Iterator[Row]:
    """Draw each row's answer; rows come back in the order in which they finish.

    Args:
        context: with room for as many sequences, each as long as the longest prompt and answer.
        rows: taken from as sequences fall free.
        sampling: temperature and top_p.
        sequences: rows under way at once.
        vocab: ids from here on, a padded head's, are never drawn.
        eos_ids: any of these ends a row.
    """
    waiting = iter(rows)
    free = list(range(sequences))
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


def _read(context: Context, places: Sequence[_Place]) -> tuple[list[_Place], npt.NDArray[np.float32]]:
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
