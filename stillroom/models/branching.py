"""How likely each of several answers is: what they have in common is read once, for a batch of questions together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from stillroom.models.hardware import input_device
from stillroom.models.rendering import Branches, Rendered

_LOGITS = 1 << 26
"""Most logits (float32) held at once while the answers' later tokens are read: 256 MiB."""


def shares_prefixes(model: Any) -> bool:
    """Whether the cache of a transformers model can be padded and its rows taken several times.

    Sliding-window and recurrent layers keep no state for each position.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


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
    # A letter is one token, which the prompt's own last place predicts: nothing more is read then.
    longer = [
        (row, answer)
        for row, question in enumerate(batch)
        for answer, tail in enumerate(question.tails)
        if len(tail) > 1
    ]
    longer.sort(key=lambda at: len(batch[at[0]].tails[at[1]]))
    while longer:
        width = len(batch[longer[-1][0]].tails[longer[-1][1]]) - 1
        several = max(1, min(batch_size, _LOGITS // (width * vocab)))
        chosen, longer = longer[-several:], longer[:-several]
        sums = _later(
            model, cache, mask, [(row, batch[row].tails[a], batch[row].given[a]) for row, a in chosen], vocab
        )
        for (row, answer), value in zip(chosen, sums, strict=True):
            found[row][answer] += value
    return found


def _later(
    model: Any, cache: DynamicCache, mask: Tensor, answers: list[tuple[int, list[int], int]], vocab: int
) -> list[float]:
    """Sum of the log-probabilities of all tokens but the first of answers (row of the cache, tokens, given ones)."""
    device = mask.device
    width = max(len(tail) for _, tail, _ in answers) - 1
    ids = torch.tensor([tail[:-1] + [0] * (width + 1 - len(tail)) for _, tail, _ in answers], device=device)
    # -100 is what cross_entropy leaves out.
    targets = torch.tensor(
        [
            [-100 if place < given else token for place, token in enumerate(tail)][1:]
            + [-100] * (width + 1 - len(tail))
            for _, tail, given in answers
        ],
        device=device,
    )
    rows = torch.tensor([row for row, _, _ in answers], device=device)
    own = DynamicCache(config=model.config)
    for place, layer in enumerate(cache.layers):
        own.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), place)
    before = mask.index_select(0, rows)
    # What pads an answer lies behind it, where nothing looks at it.
    logits = model(
        input_ids=ids,
        attention_mask=F.pad(before, (0, width), value=1),
        position_ids=before.sum(-1, keepdim=True) + torch.arange(width, device=device),
        past_key_values=own,
        use_cache=True,
    ).logits[..., :vocab]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(logits.device).flatten(), reduction="none"
    )
    return (-losses.view(len(answers), width).double().sum(-1)).tolist()
