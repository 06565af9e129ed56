"""Packed rows: the same loss and gradients as padded rows and as one row at a time, or no packing at all."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stillroom.signals import capture, token_keys
from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate
from stillroom.training.objective import Objective
from stillroom.training.packable import use_packing
from stillroom.training.packing import NAME, Layout, undo_packing

VOCAB, WINDOW, LENGTHS = 97, 6, (5, 9, 9, 14, 23, 4)  # longer rows than the window, of several groups
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def model_of(kind, seed=0):
    torch.manual_seed(seed)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    windows = {"sliding_window": WINDOW, "layer_types": layers}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**SHAPE, **windows))
    if kind == "mamba":
        return MambaForCausalLM(
            MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=2)
        )
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **windows))


def some_rows(seed=0, lengths=LENGTHS):
    """Rows of these lengths with signals of a random teacher; about two thirds of the tokens are selected."""
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        mask = random.random(length) < 0.7
        mask[0] = False
        places = torch.from_numpy(np.flatnonzero(mask))
        logits = torch.randn(len(places), VOCAB, generator=generator) * 3
        targets = capture(logits, keys=token_keys(f"{number:032x}", places))
        rows.append(TrainingRow(random.integers(0, VOCAB, length), mask, targets))
    return rows


def loss_and_gradients(model, batches, tokens, teacher=None):
    model.zero_grad()
    objective, total = Objective(hard=0.3, soft=0.7), 0.0
    for batch in batches:
        loss = objective.loss(model, **batch, scale=1 / tokens, teacher=teacher)["loss"]
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("live", [False, True], ids=["signals", "live teacher"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_packed_rows_train_as_padded_ones_and_as_one_at_a_time(kind, live):
    # Norms are taken in float32 by the models themselves, hence the tolerance.
    rows, model = some_rows(), model_of(kind).double()
    teacher = model_of("llama", seed=5).double() if live else None
    tokens = sum(int(row.mask.sum()) for row in rows)
    alone = loss_and_gradients(model, [collate([row]) for row in rows], tokens, teacher)
    padded = loss_and_gradients(model, [collate(rows)], tokens, teacher)
    assert use_packing(model, max(LENGTHS), attached=False)
    assert teacher is None or use_packing(teacher, max(LENGTHS), attached=False)
    for order in (rows, rows[::-1], sorted(rows, key=lambda row: len(row.ids))):
        packed = loss_and_gradients(model, [collate(order, packed=True)], tokens, teacher)
        for other in (alone, padded):
            assert packed[0] == pytest.approx(other[0], rel=1e-7)
            for name, gradient in packed[1].items():
                torch.testing.assert_close(gradient, other[1][name], rtol=1e-5, atol=1e-6)


def test_packing_holds_under_gradient_checkpointing():
    rows, model = some_rows(), model_of("llama").double().train()
    tokens = sum(int(row.mask.sum()) for row in rows)
    expected = loss_and_gradients(model, [collate(rows)], tokens)
    assert use_packing(model, max(LENGTHS), attached=False)
    model.activation_checkpointing_enable()
    found = loss_and_gradients(model, [collate(rows, packed=True)], tokens)
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mamba", "gemma2"])
def test_a_model_that_would_mix_rows_or_cannot_be_asked_is_left_as_it_was(kind):
    model = model_of(kind)  # Gemma 2 caps its attention's logits, which this attention does not
    before = model.config._attn_implementation
    if kind == "gemma2":
        model.set_attn_implementation("eager")
        before = "eager"
    assert not use_packing(model, 20, attached=False)
    assert model.config._attn_implementation == before
    assert model.training is model_of(kind).training


def test_a_model_that_drops_the_layout_on_its_way_to_attention_is_not_packed():
    model = model_of("llama")
    layer = model.model.layers[1].self_attn
    plain = layer.forward
    layer.forward = lambda *args, packed_layout=None, **kwargs: plain(*args, **kwargs)
    assert not use_packing(model, 20, attached=False)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_knows_its_window_from_a_mask_alone_is_not_packed_when_rows_are_longer():
    model = model_of("gemma3")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert use_packing(copy.deepcopy(model), WINDOW, attached=False)
    assert not use_packing(model, 4 * WINDOW, attached=False)


def test_a_prepared_model_still_answers_padded_and_masked_calls_as_before():
    model = model_of("gemma3").eval()
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9, 3, 4, 2], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    mask = (ids > 0).long()
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        assert use_packing(model, 20, attached=False)
        assert model.config._attn_implementation == NAME
        after = model(input_ids=ids, attention_mask=mask).logits
        undo_packing(model)
        assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_layout_cuts_tokens_into_rows_and_joins_them_again(lengths):
    layout = Layout.of(lengths)
    tokens = torch.arange(1.0, sum(lengths) + 1)[None, None, :, None].expand(1, 2, -1, 3)
    joined = torch.cat([group.join(group.cut(tokens)) for group in layout.groups])
    assert torch.equal(joined, tokens[0].transpose(0, 1))
    starts = np.cumsum([0, *lengths])
    rows = [row for group in layout.groups for row in group.cut(tokens)]
    for row, start, length in zip(rows, starts, lengths, strict=False):
        assert row[0, :length, 0].tolist() == list(range(start + 1, start + length + 1))
        assert not row[0, length:].any()
    slots = sum(group.rows * group.longest for group in layout.groups)
    assert slots <= 1.25 * sum(lengths)


def test_a_row_whose_first_token_is_selected_is_refused():
    with pytest.raises(ValueError, match="first token"):
        collate([TrainingRow(np.array([3, 4]), np.array([True, True]))], packed=True)
