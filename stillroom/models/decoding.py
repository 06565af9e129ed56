"""Batched generation with a transformers model: finished rows leave the batch, waiting ones take their place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from stillroom.contracts.records import Sampling
from stillroom.models.hardware import input_device
from stillroom.models.rows import Row
from stillroom.models.sampling import draw


@torch.inference_mode()
def decode(
    model: Any,
    rows: Iterator[Row],
    sampling: Sampling,
    *,
    eos_ids: frozenset[int],
    vocab: int,
    batch_size: int,
) -> Iterator[Row]:
    """Draw each row's answer; rows come back in the order in which they finish.

    Args:
        model: a transformers causal language model.
        rows: taken from as places fall free, never more than batch_size ahead.
        sampling: temperature and top_p.
        eos_ids: any of these ends a row.
        vocab: ids from here on, a padded head's, are never drawn.
        batch_size: most rows at once.
    """
    batch = _Batch(model, sampling, vocab)
    while True:
        # A place alone is not worth a pass over one prompt: refilled when a quarter is free.
        if not batch.rows or (batch.mergeable and len(batch.rows) <= batch_size * 3 // 4):
            batch.admit([row for _, row in zip(range(batch_size - len(batch.rows)), rows, strict=False)])
        if not batch.rows:
            return
        batch.draw()
        done = [row for row in batch.rows if row.done(eos_ids)]
        if done:
            batch.drop(done)
        if batch.rows:
            batch.step()
        yield from done


class _Batch:
    """Rows under way: cache and attention mask [rows, length], left-padded, and the logits of the next token."""

    def __init__(self, model: Any, sampling: Sampling, vocab: int) -> None:
        self.model, self.sampling, self.vocab = model, sampling, vocab
        self.device = input_device(model)
        self.rows: list[Row] = []
        self.mask: Tensor
        self.logits: Tensor
        self.seeds: Tensor
        self.tokens: Tensor
        self.cache = DynamicCache(config=model.config)
        # Sliding-window and recurrent layers keep no per-position state that could be padded or cut.
        self.mergeable = all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def admit(self, rows: list[Row]) -> None:
        """Read the prompts of new rows and put them behind those under way."""
        if not rows:
            return
        for row in rows:
            row.begun = time.perf_counter()
        length = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[0] * (length - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (length - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, mask, positions, cache)
        seeds = torch.tensor([row.seed for row in rows], device=self.device)
        if self.rows:
            cache = _merged(self.cache, cache)
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([_widened(self.mask, width), _widened(mask, width)])
            logits, seeds = torch.cat([self.logits, logits]), torch.cat([self.seeds, seeds])
        self.rows, self.cache, self.mask = self.rows + rows, cache, mask
        self.logits, self.seeds = logits, seeds

    def draw(self) -> None:
        """Add a token to each row."""
        steps = torch.tensor([len(row.ids) for row in self.rows], device=self.device)
        self.tokens, logprobs = draw(self.logits, self.seeds, steps, self.sampling)
        for row, token, logprob in zip(self.rows, self.tokens.tolist(), logprobs.tolist(), strict=True):
            row.add(token, logprob)

    def step(self) -> None:
        """Read the tokens just drawn."""
        positions = self.mask.sum(-1, keepdim=True)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self.logits = self._forward(self.tokens[:, None], self.mask, positions, self.cache)

    def drop(self, done: list[Row]) -> None:
        """Take rows out of the batch, and the padding that only they needed."""
        left = [index for index, row in enumerate(self.rows) if row not in done]
        self.rows = [self.rows[index] for index in left]
        if not left:
            return
        keep = torch.tensor(left, device=self.device)
        self.tokens, self.seeds, self.mask = self.tokens[keep], self.seeds[keep], self.mask[keep]
        self.cache.reorder_cache(keep)
        padding = int(self.mask.argmax(-1).min())
        if padding and self.mergeable:
            self.mask = self.mask[:, padding:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, padding:], layer.values[:, :, padding:]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1, : self.vocab].float().to(self.device)


def _merged(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """Two caches as one batch, padded on the left to the longer of them."""
    width = max(first.get_seq_length(), second.get_seq_length())
    for mine, other in zip(first.layers, second.layers, strict=True):
        for name in ("keys", "values"):
            pair = [getattr(layer, name) for layer in (mine, other)]
            padded = [F.pad(state, (0, 0, width - state.shape[2], 0)) for state in pair]
            setattr(mine, name, torch.cat(padded))
    return first


def _widened(mask: Tensor, width: int) -> Tensor:
    return F.pad(mask, (width - mask.shape[1], 0))
