"""Batched generation: many prompts through one context, a finished slot taking the next prompt at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stillroom.models.llama_cpp_context import Context


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt."""

    index: int
    """Which prompt, by its place in the list."""
    token_ids: list[int]
    """Tokens drawn, the stop token included."""
    logprobs: list[float]
    """Natural log-probability of each drawn token at temperature 1, whatever temperature it was drawn at."""
    finish_reason: str
    """`stop` (a stop token) or `length` (max_new_tokens or the end of the context)."""


@dataclass
class _Slot:
    """One sequence of the context and the prompt that it is answering."""

    sequence: int
    index: int
    random: np.random.Generator
    pending: list[int]
    """Tokens not yet fed: the rest of the prompt, later the one token just drawn."""
    position: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate(
    context: Context,
    prompts: Sequence[Sequence[int]],
    *,
    parallel: int,
    n_ctx: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    is_stop: Callable[[int], bool],
) -> Iterator[Generation]:
    """Answers in the order in which they finish.

    Randomness is drawn from a generator of its own for each prompt, keyed by (seed, index), so which prompts happen
    to share a batch does not decide what is drawn.
    """
    waiting = iter(enumerate(prompts))
    slots: list[_Slot] = []

    def take(sequence: int) -> None:
        """Gives the sequence the next prompt, if one is left."""
        following = next(waiting, None)
        if following is not None:
            context.forget(sequence)
            index, prompt = following
            random = np.random.Generator(np.random.Philox(key=[seed, index]))
            slots.append(_Slot(sequence, index, random, list(prompt)))

    for sequence in range(parallel):
        take(sequence)
    while slots:
        ready, logits = _step(context, slots)
        if not ready:
            continue
        tokens, logprobs = _draw(logits, [slot.random for slot in ready], temperature)
        for slot, token, logprob in zip(ready, tokens, logprobs, strict=True):
            slot.token_ids.append(token)
            slot.logprobs.append(logprob)
            slot.pending = [token]
            stopped = is_stop(token)
            full = len(slot.token_ids) >= max_new_tokens or slot.position >= n_ctx
            if stopped or full:
                slots.remove(slot)
                take(slot.sequence)
                yield Generation(slot.index, slot.token_ids, slot.logprobs, "stop" if stopped else "length")


def _step(context: Context, slots: Sequence[_Slot]) -> tuple[list[_Slot], npt.NDArray[np.float32]]:
    """Feeds what is pending, as far as one batch goes.

    Slots with a single pending token come first, so that a long prompt does not hold up those that are writing.
    Returns the slots whose last pending token was fed, with their logits [slots, vocab].
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    outputs: list[bool] = []
    ready = []
    for slot in sorted(slots, key=lambda slot: len(slot.pending)):
        count = min(len(slot.pending), context.batch_size - len(tokens))
        if count == 0:
            break
        whole = count == len(slot.pending)
        tokens += slot.pending[:count]
        positions += range(slot.position, slot.position + count)
        sequences += [slot.sequence] * count
        outputs += [False] * (count - 1) + [whole]
        slot.pending = slot.pending[count:]
        slot.position += count
        if whole:
            ready.append(slot)
    return ready, context.decode(tokens, positions, sequences, outputs)


def _draw(
    logits: npt.NDArray[np.float32], randoms: Sequence[np.random.Generator], temperature: float
) -> tuple[list[int], list[float]]:
    """One token for each row of logits [rows, vocab], and its log-probability at temperature 1."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    if temperature == 0:
        chosen = logits.argmax(axis=1)
    else:
        cumulative = np.exp(shifted / temperature).cumsum(axis=1, dtype=np.float64)
        drawn = [random.random() for random in randoms]
        # Scaled by the total, a uniform number below 1 stays below the last sum, so the index is always valid.
        chosen = np.array(
            [
                np.searchsorted(row, u * row[-1], side="right")
                for row, u in zip(cumulative, drawn, strict=True)
            ]
        )
    rows = np.arange(len(chosen))
    return chosen.tolist(), (shifted[rows, chosen] - log_norm).tolist()
