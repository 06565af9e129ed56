"""How likely each of several answers is: what they have in common is read once, for a batch of questions together."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from stillroom.models.hardware import input_device
from stillroom.models.rendering import Branches, Rendered

_ALIKE = 0.75
"""Of the longest prompt of a pass: a shorter one waits for the next."""
_LOGITS = 1 << 26
"""Most logits (float32) held at once while the answers' later tokens are read: 256 MiB."""


def shares_prefixes(model: Any) -> bool:
    """Whether the cache of a transformers model can be padded and its rows taken several times.

    Sliding-window and recurrent layers keep no state for each position.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def alike(batch: list[Branches]) -> Iterator[list[Branches]]:
    """A batch, longest prompt first, in parts whose prompts are of much the same length: padding costs what tokens do."""
    part: list[Branches] = []
    for question in batch:
        if part and len(question.ids) < _ALIKE * len(part[0].ids):
            yield part
            part = []
        part.append(question)
    if part:
        yield part


def row_logprob(row: Rendered, logits: Tensor) -> float:
    """Sum of the log-probabilities (natural log) of a row's masked tokens, from the logits `[selected, vocab]` of them."""
    chosen = [token for token, wanted in zip(row.ids, row.mask, strict=True) if wanted]
    targets = torch.tensor(chosen, device=logits.device)
    return -float(F.cross_entropy(logits.float(), targets, reduction="none").double().sum())


@torch.inference_mode()
def branch_logprobs(model: Any, batch: list[Branches], *, vocab: int, batch_size: int) -> list[list[float]]:
    """Sum of the log-probabilities (natural log) of each answer's tokens, for each question.

    Args:
        model: a transformers causal language model that `shares_prefixes`.
        batch: questions, read together.
        vocab: ids from here on, a padded head's, count for nothing.
        batch_size: most answers read together.
    """
    device = input_device(model)
    length = max(len(question.ids) for question in batch)
    ids = torch.tensor(
        [question.ids + [0] * (length - len(question.ids)) for question in batch], device=device
    )
    mask = torch.tensor(
        [[1] * len(question.ids) + [0] * (length - len(question.ids)) for question in batch], device=device
    )
    cache = DynamicCache(config=model.config)
    # Padding lies on the right, where a causal model does not look: no mask, which would cost half the time.
    last = model(
        input_ids=ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=F.one_hot(mask.sum(-1) - 1, length).bool(),
    ).logits.reshape(len(batch), -1)
    first = last[:, :vocab].float().log_softmax(-1).cpu()
    found = [
        [
            0.0 if given else float(first[row, tail[0]])
            for tail, given in zip(question.tails, question.given, strict=True)
        ]
        for row, question in enumerate(batch)
    ]
    # A letter is one token, which the prompt's own last place predicts: nothing more is read then. What answers begin
    # with in common, a space that is a token of its own, is read once for all of them.
    runs: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, question in enumerate(batch):
        for answer, tail in enumerate(question.tails):
            if len(tail) > 1:
                runs.setdefault((row, tuple(tail[:-1])), []).append(answer)
    waiting = sorted(runs, key=lambda run: len(run[1]))
    while waiting:
        several = max(1, min(batch_size, _LOGITS // (len(waiting[-1][1]) * vocab)))
        chosen, waiting = waiting[-several:], waiting[:-several]
        logprobs = _later(model, cache, mask, chosen)[..., :vocab].float().log_softmax(-1)
        places = [
            (at, place, token, run[0], answer)
            for at, run in enumerate(chosen)
            for answer in runs[run]
            for place, token in enumerate(batch[run[0]].tails[answer][1:])
            if place + 1 >= batch[run[0]].given[answer]
        ]
        at, place, token = (
            torch.tensor(column, device=device) for column in list(zip(*places, strict=True))[:3]
        )
        for value, (*_, row, answer) in zip(logprobs[at, place, token].tolist(), places, strict=True):
            found[row][answer] += value
    return found


def _later(model: Any, cache: DynamicCache, mask: Tensor, runs: list[tuple[int, tuple[int, ...]]]) -> Tensor:
    """Logits [runs, longest, vocab] after each token of runs (row of the cache, tokens), which go on from the cache."""
    device = mask.device
    width = max(len(tokens) for _, tokens in runs)
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for _, tokens in runs], device=device)
    rows = torch.tensor([row for row, _ in runs], device=device)
    own = DynamicCache(config=model.config)
    own.layers = [_rows_of(layer, rows) for layer in cache.layers]
    before = mask.index_select(0, rows)
    # What pads a run lies behind it, where nothing looks at it.
    return model(
        input_ids=ids,
        attention_mask=F.pad(before, (0, width), value=1),
        position_ids=before.sum(-1, keepdim=True) + torch.arange(width, device=device),
        past_key_values=own,
        use_cache=True,
    ).logits


def _rows_of(layer: Any, rows: Tensor) -> Any:
    """Some rows of a cache's layer, each as often as it is named."""
    own = copy(layer)
    own.keys, own.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
    return own
