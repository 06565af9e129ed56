"""How likely each of several answers is, by llama.cpp: answers go on from one cached prompt, prompts share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillroom.models.llama_cpp_context import Context
from stillroom.models.rendering import Branches

Floats = npt.NDArray[np.float64]


def branch_logprobs(
    context: Context, batch: Sequence[Branches], *, vocab: int, cells: int, sequences: int
) -> list[list[float]]:
    """Sum of the log-probabilities (natural log) of each answer's tokens, for each question.

    Args:
        context: whose sequences share its cells; what it holds is dropped.
        batch: fewer questions than `sequences`; all prompts fit into the cells, with any one of their answers.
        vocab: ids from here on, a padded head's, count for nothing.
        cells: of the context.
        sequences: of the context.
    """
    context.clear()
    first = _logprobs(_prompts(context, batch), vocab)
    found = [
        [
            0.0 if given else float(first[row, tail[0]])
            for tail, given in zip(question.tails, question.given, strict=True)
        ]
        for row, question in enumerate(batch)
    ]
    # A letter is one token, which the prompt's own last place predicts: nothing more is read then.
    longer = [
        (row, answer)
        for row, question in enumerate(batch)
        for answer, tail in enumerate(question.tails)
        if len(tail) > 1
    ]
    room = cells - sum(len(question.ids) for question in batch)
    while longer:
        chosen: list[tuple[int, int]] = []
        held = 0
        while longer and len(batch) + len(chosen) < sequences:
            row, answer = longer[-1]
            held += len(batch[row].tails[answer]) - 1
            if chosen and held > room:
                break
            chosen.append(longer.pop())
        _add_later(context, batch, chosen, found, vocab)
    return found


def _prompts(context: Context, batch: Sequence[Branches]) -> npt.NDArray[np.float32]:
    """The logits [questions, vocab] after each prompt; question q is sequence q."""
    lengths = [len(question.ids) for question in batch]
    last = np.zeros(sum(lengths), np.bool_)
    last[np.cumsum(lengths) - 1] = True
    return _read(
        context,
        np.concatenate([np.asarray(question.ids, np.int32) for question in batch]),
        np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        np.repeat(np.arange(len(batch), dtype=np.int32), lengths),
        last,
    )


def _add_later(
    context: Context,
    batch: Sequence[Branches],
    chosen: list[tuple[int, int]],
    found: list[list[float]],
    vocab: int,
) -> None:
    """Read the answers (question, answer) behind their prompts, and add what their tokens but the first are worth."""
    tails = [batch[row].tails[answer] for row, answer in chosen]
    own = range(len(batch), len(batch) + len(chosen))
    for (row, _), sequence in zip(chosen, own, strict=True):
        context.share(row, sequence)
    lengths = [len(tail) - 1 for tail in tails]
    logits = _read(
        context,
        np.concatenate([np.asarray(tail[:-1], np.int32) for tail in tails]),
        np.concatenate(
            [len(batch[row].ids) + np.arange(n) for (row, _), n in zip(chosen, lengths, strict=True)]
        ),
        np.repeat(np.asarray(own, np.int32), lengths),
        np.ones(sum(lengths), np.bool_),
    )
    pieces = np.split(_logprobs(logits, vocab), np.cumsum(lengths)[:-1])
    for (row, answer), tail, piece, sequence in zip(chosen, tails, pieces, own, strict=True):
        wanted = piece[np.arange(len(tail) - 1), tail[1:]]
        found[row][answer] += float(wanted[max(0, batch[row].given[answer] - 1) :].sum())
        context.forget(sequence)


def _read(
    context: Context,
    tokens: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    sequences: npt.NDArray[np.int32],
    outputs: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """`Context.decode` of any number of tokens, a batch at a time."""
    rows = []
    for start in range(0, len(tokens), context.batch_size):
        piece = slice(start, start + context.batch_size)
        rows.append(context.decode(tokens[piece], positions[piece], sequences[piece], outputs[piece]).copy())
    return np.concatenate(rows)


def _logprobs(logits: npt.NDArray[np.float32], vocab: int) -> Floats:
    """Log-probabilities [rows, vocab] of logits [rows, vocab or more]."""
    wide = logits[:, :vocab].astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
