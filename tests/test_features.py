"""Layer maps, hidden states, attention, relations and classifiers, against loops in float64 and real models."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stillroom.losses import (
    Captured,
    Hint,
    MatchWeights,
    Projections,
    attention_loss,
    attention_maps,
    capture_attention,
    classifier_loss,
    forward_kl,
    hidden_state_loss,
    map_layers,
    patience_loss,
    reduce,
    relation_loss,
    weighted_components,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Layer maps.


@given(student=st.integers(1, 40), teacher=st.integers(1, 80))
def test_uniform_map_is_proportional_and_joins_first_to_first_and_last_to_last(
    student: int, teacher: int
) -> None:
    mapped = map_layers(student, teacher)
    assert list(mapped) == list(range(student + 1))
    assert mapped[0] == 0
    assert mapped[student] == teacher
    assert all(abs(t - m * teacher / student) <= 0.5 for m, t in mapped.items())
    assert sorted(mapped.values()) == list(mapped.values())


def test_uniform_map_of_equal_depths_is_the_identity_and_of_different_ones_is_not() -> None:
    assert map_layers(6, 6) == {m: m for m in range(7)}
    assert map_layers(4, 12) == {0: 0, 1: 3, 2: 6, 3: 9, 4: 12}
    assert map_layers(2, 5) == {0: 0, 1: 3, 2: 5}  # 2.5 goes up


def test_last_map_joins_the_last_layers_whatever_the_depths() -> None:
    assert map_layers(4, 12, "last") == {4: 12}
    assert map_layers(9, 3, "last") == {9: 3}


def test_an_explicit_map_is_checked_against_both_depths() -> None:
    assert map_layers(4, 12, {4: 12, 2: 5}) == {2: 5, 4: 12}
    with pytest.raises(
        ValueError, match=r"names layer 13 of the teacher, which has 0 \(the embedding\) to 12"
    ):
        map_layers(4, 12, {4: 13})
    with pytest.raises(ValueError, match="names layer 5 of the student"):
        map_layers(4, 12, {5: 12})
    with pytest.raises(ValueError, match="names layer -1 of the teacher"):
        map_layers(4, 12, {4: -1})


@pytest.mark.parametrize("arguments", [(0, 3), (3, 0), (2, 4, "first"), (2, 4, {})])
def test_maps_that_make_no_sense_are_value_errors(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r".+"):
        map_layers(*arguments)


# Hidden states.


def hidden_reference(student: Tensor, teacher: Tensor, kind: str) -> list[float]:
    out = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        if kind == "mse":
            out.append(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s))
        else:
            dot = sum(a * b for a, b in zip(s, t, strict=True))
            out.append(1 - dot / (math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))))
    return out


both_kinds = pytest.mark.parametrize("kind", ["mse", "cosine"])


@both_kinds
def test_hidden_state_loss_agrees_with_a_loop_and_passes_gradcheck(kind: str) -> None:
    student, teacher = randn(5, 7).requires_grad_(), randn(5, 7)
    got = hidden_state_loss(student, teacher, kind=kind)
    torch.testing.assert_close(got.tolist(), hidden_reference(student, teacher, kind))
    assert torch.autograd.gradcheck(lambda s: hidden_state_loss(s, teacher, kind=kind), student)
    narrow = hidden_state_loss(student.bfloat16(), teacher.bfloat16(), kind=kind)
    assert narrow.dtype == torch.float32


@both_kinds
def test_equal_hidden_states_cost_nothing(kind: str) -> None:
    states = torch.randn(4, 9, requires_grad=True)
    values = hidden_state_loss(states, states.detach(), kind=kind)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(states.grad, torch.zeros(4, 9), rtol=0, atol=1e-6)


def test_cosine_ignores_length_and_mse_does_not() -> None:
    states = randn(3, 8)
    torch.testing.assert_close(
        hidden_state_loss(7 * states, states, kind="cosine"), torch.zeros(3).double(), rtol=0, atol=1e-12
    )
    assert (hidden_state_loss(7 * states, states) > 1).all()


@both_kinds
def test_masked_states_reach_neither_value_nor_gradient_even_if_nan(kind: str) -> None:
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    student[~mask] = math.nan
    teacher[~mask] = math.inf
    student.requires_grad_()
    values = hidden_state_loss(student, teacher, kind=kind, mask=mask)
    reduce(values, mask, mask.sum()).backward()
    assert (values[~mask] == 0).all()
    assert (student.grad[~mask] == 0).all()
    assert (student.grad[mask] != 0).any(-1).all()
    nothing = hidden_state_loss(student, teacher, kind=kind, mask=torch.zeros_like(mask))
    assert (nothing == 0).all()


@given(
    scale=st.sampled_from([0.0, 1e-42, 1e-20, 1.0, 1e18, 1e37]),
    other=st.sampled_from([0.0, 1e-20, 1.0, 1e37]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_cosine_stays_finite_for_states_of_any_size(scale: float, other: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(3, 6, generator=g) * scale).requires_grad_()
    values = hidden_state_loss(student, torch.randn(3, 6, generator=g) * other, kind="cosine")
    values.sum().backward()
    assert ((values > -1e-5) & (values < 2 + 1e-5)).all()
    assert student.grad is not None
    assert not student.grad.isnan().any()


def test_projections_learn_one_map_a_pair_and_keep_lengths_at_the_start() -> None:
    projections = Projections(map_layers(2, 6), 8, 12)
    assert sorted(projections.state_dict()) == ["maps.0->0.weight", "maps.1->3.weight", "maps.2->6.weight"]
    states = torch.randn(3, 5, 8)
    out = projections(1, states)
    assert out.shape == (3, 5, 12)
    torch.testing.assert_close(out.norm(dim=-1), states.norm(dim=-1))
    hidden_state_loss(out, torch.randn(3, 5, 12)).sum().backward()
    grads = {name: p.grad is not None for name, p in projections.named_parameters()}
    assert grads == {"maps.0->0.weight": False, "maps.1->3.weight": True, "maps.2->6.weight": False}
    with pytest.raises(ValueError, match="student layer 3 is not in the map"):
        projections(3, states)


def test_a_hint_is_the_loss_of_regressed_states_and_can_be_learned() -> None:
    hint = Hint(1, 3, 4, 6).double()
    guided = randn(40, 4)
    truth = guided @ randn(4, 6) + randn(6)
    linear = hint.regressor.maps["1->3"]
    want = hidden_reference(guided @ linear.weight.T + linear.bias, truth, "mse")
    torch.testing.assert_close(hint(guided, truth).tolist(), want)
    optimiser = torch.optim.LBFGS(hint.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = hint(guided, truth).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert hint(guided, truth).mean() < 1e-8


# Weights of layers and components.


def test_weighted_components_are_the_weighted_sum_and_attention_can_outweigh_values() -> None:
    values = {(1, "attention_output"): randn(2, 3), (1, "value"): randn(2, 3), (2, "mlp"): randn(2, 3)}
    weights = MatchWeights(attention_output=2.0, mlp=3.0, value=0.25, layers={2: 10.0})
    want = 2 * values[1, "attention_output"] + 0.25 * values[1, "value"] + 30 * values[2, "mlp"]
    torch.testing.assert_close(weighted_components(values, weights), want)
    assert MatchWeights().attention > MatchWeights().value


def test_a_component_of_weight_zero_is_not_touched() -> None:
    broken = torch.full((2,), math.nan, requires_grad=True)
    total = weighted_components({(1, "mlp"): broken, (1, "hidden"): torch.ones(2)}, MatchWeights(mlp=0))
    assert total.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("components", "weights", "message"),
    [
        ({}, {}, "at least 1 component"),
        ({(1, "gate"): torch.ones(2)}, {}, "unknown components"),
        ({(1, "mlp"): torch.ones(2)}, {"layers": {4: 1.0}}, r"layers \[4\] have weights"),
        ({(1, "mlp"): torch.ones(2), (2, "mlp"): torch.ones(3)}, {}, "one shape"),
        ({(1, "mlp"): torch.ones(2)}, {"mlp": -1.0}, "cannot be negative"),
        ({(1, "mlp"): torch.ones(2)}, {"layers": {1: math.nan}}, "cannot be negative"),
    ],
)
def test_weights_that_do_not_fit_are_value_errors(components: dict, weights: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_components(components, MatchWeights(**weights))


# Attention maps.


def map_reference(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Loops over everything; nothing is shared with the code under test."""
    rows, heads, length, dim = q.shape
    out = torch.zeros(rows, heads, length, length, dtype=torch.float64)
    for r in range(rows):
        for h in range(heads):
            for i in range(length):
                seen = []
                for j in range(length):
                    if causal and j > i:
                        continue
                    if mask is not None and mask.dim() == 2 and not (mask[r, i] and mask[r, j]):
                        continue
                    if mask is not None and mask.dim() == 3 and not mask[r, i, j]:
                        continue
                    score = scale * sum(
                        float(q[r, h, i, c]) * float(k[r, h * k.shape[1] // heads, j, c]) for c in range(dim)
                    )
                    seen.append((j, score))
                total = sum(math.exp(s) for _, s in seen)
                for j, s in seen:
                    out[r, h, i, j] = math.exp(s) / total
    return out


PADDING = torch.tensor([[False, True, True, True, True], [True, True, True, False, False]])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [None, "padding", "pairs"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_maps_agree_with_a_loop(causal: bool, masked: str | None, key_heads: int) -> None:
    q, k = randn(2, 4, 5, 3), randn(2, key_heads, 5, 3)
    mask = {None: None, "padding": PADDING, "pairs": torch.rand(2, 5, 5) > 0.4}[masked]
    got = attention_maps(q, k, mask=mask, causal=causal, scale=0.6)
    torch.testing.assert_close(got.exp(), map_reference(q, k, mask, causal, 0.6))


def test_maps_are_not_narrowed_by_autocast_or_halves() -> None:
    q, k = torch.randn(1, 2, 6, 4) * 5, torch.randn(1, 2, 6, 4) * 5
    want = attention_maps(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_maps(q, k).equal(want)
    half = attention_maps(q.bfloat16(), k.bfloat16())
    assert half.dtype == torch.float32
    assert half.equal(attention_maps(q.bfloat16().float(), k.bfloat16().float()))


def test_no_query_sees_the_future() -> None:
    maps = attention_maps(randn(1, 2, 6, 4), randn(1, 2, 6, 4)).exp()
    assert (maps.triu(1) == 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 6).double())


def maps_of(length: int, heads: int = 3, mask: Tensor | None = None, grad: bool = False) -> Tensor:
    rows = 1 if mask is None else mask.shape[0]
    q = randn(rows, heads, length, 4).requires_grad_(grad)
    return attention_maps(q, randn(rows, heads, length, 4), mask=mask)


def loss_reference(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    rows, heads, length, _ = student.shape
    out = torch.zeros(rows, length, dtype=torch.float64)
    for r in range(rows):
        for h in range(heads):
            for i in range(length):
                for q, p in zip(student[r, h, i].tolist(), teacher[r, h, i].tolist(), strict=True):
                    if kind == "mse":
                        out[r, i] += (q - p) ** 2 / heads
                    elif p > 0:
                        out[r, i] += p * (math.log(p) - math.log(q)) / heads
    return out


kl_and_mse = pytest.mark.parametrize("kind", ["kl", "mse"])


@kl_and_mse
def test_attention_loss_agrees_with_a_loop_head_to_head_or_averaged(kind: str) -> None:
    student, teacher, more = maps_of(5, 2, PADDING), maps_of(5, 2, PADDING), maps_of(5, 6, PADDING)
    got = attention_loss(student, teacher, kind=kind)
    torch.testing.assert_close(got, loss_reference(student.exp(), teacher.exp(), kind))
    assert (got[~PADDING] == 0).all()
    got = attention_loss(student, more, kind=kind)
    want = loss_reference(student.exp().mean(1, keepdim=True), more.exp().mean(1, keepdim=True), kind)
    torch.testing.assert_close(got, want)


@kl_and_mse
@pytest.mark.parametrize("teacher_heads", [2, 4])
def test_gradient_of_attention_loss_passes_gradcheck_through_the_maps(kind: str, teacher_heads: int) -> None:
    teacher = maps_of(5, teacher_heads, PADDING)
    q, k = randn(2, 2, 5, 3).requires_grad_(), randn(2, 1, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k: attention_loss(attention_maps(q, k, mask=PADDING), teacher, kind=kind), (q, k)
    )


@kl_and_mse
def test_equal_maps_cost_nothing_and_pull_nowhere(kind: str) -> None:
    q, k = torch.randn(2, 2, 5, 3, requires_grad=True), torch.randn(2, 2, 5, 3)
    maps = attention_maps(q, k, mask=PADDING)
    values = attention_loss(maps, maps.detach(), kind=kind)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(2, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(q.grad, torch.zeros_like(q), rtol=0, atol=1e-6)


def shifted(x: Tensor, by: int, total: int, fill: float = math.nan) -> Tensor:
    """x `[..., len, dim]` within a longer row, the rest filled."""
    out = torch.full((*x.shape[:-2], total, x.shape[-1]), fill, dtype=x.dtype)
    out[..., by : by + x.shape[-2], :] = x
    return out


@pytest.mark.parametrize("by", [0, 2, 4])
@kl_and_mse
def test_padding_on_either_side_changes_neither_value_nor_gradient_even_if_nan(by: int, kind: str) -> None:
    q, k, tq, tk = (randn(1, 2, 5, 3) for _ in range(4))
    q.requires_grad_()
    want = attention_loss(attention_maps(q, k), attention_maps(tq, tk), kind=kind)
    (want_grad,) = torch.autograd.grad(want.sum(), q)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, by : by + 5] = True
    padded = shifted(q.detach(), by, 9).requires_grad_()
    student = attention_maps(padded, shifted(k, by, 9), mask=mask)
    got = attention_loss(
        student, attention_maps(shifted(tq, by, 9), shifted(tk, by, 9), mask=mask), kind=kind
    )
    (grad,) = torch.autograd.grad(got.sum(), padded)
    torch.testing.assert_close(got[:, by : by + 5], want)
    torch.testing.assert_close(grad[:, :, by : by + 5], want_grad)
    assert (got[~mask] == 0).all()
    assert (grad[:, :, ~mask[0]] == 0).all()


@kl_and_mse
def test_packed_documents_are_matched_as_if_apart(kind: str) -> None:
    q, k, tq, tk = (randn(1, 2, 7, 3) for _ in range(4))
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    mask = (document[:, None] == document[None, :])[None]
    got = attention_loss(attention_maps(q, k, mask=mask), attention_maps(tq, tk, mask=mask), kind=kind)
    apart = [
        attention_loss(
            attention_maps(q[:, :, part], k[:, :, part]),
            attention_maps(tq[:, :, part], tk[:, :, part]),
            kind=kind,
        )
        for part in (slice(0, 3), slice(3, 7))
    ]
    torch.testing.assert_close(got, torch.cat(apart, 1))


@kl_and_mse
def test_a_fully_padded_batch_has_no_attention_loss(kind: str) -> None:
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    q = torch.randn(2, 2, 5, 3, requires_grad=True)
    values = attention_loss(attention_maps(q, q, mask=nobody), maps_of(5, 4, nobody).float(), kind=kind)
    values.sum().backward()
    assert (values == 0).all()
    assert (q.grad == 0).all()


@given(
    scale=st.sampled_from([1e-6, 1.0, 1e3, 1e15]),
    heads=st.sampled_from([1, 2, 4]),
    lengths=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_attention_and_relations_stay_finite_for_extreme_scores_and_any_mask(
    scale: float, heads: int, lengths: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    student = (torch.randn(2, 2, 6, 4, generator=g) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(2, heads, 6, 4, generator=g) * scale).to(dtype)
    maps = attention_maps(student, student, mask=mask), attention_maps(teacher, teacher, mask=mask)
    for values in (
        attention_loss(*maps),
        attention_loss(*maps, kind="mse"),
        relation_loss(student, teacher, 4, mask=mask),
    ):
        student.grad = None
        values.sum().backward(retain_graph=True)
        assert values.isfinite().all()
        assert (values >= -1e-5).all()
        assert (values[~mask] == 0).all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: attention_maps(randn(1, 3, 4, 2), randn(1, 2, 4, 2)),
        lambda: attention_maps(randn(1, 2, 4, 2), randn(1, 2, 5, 2)),
        lambda: attention_maps(randn(3, 4, 2), randn(3, 4, 2)),
        lambda: attention_maps(randn(1, 2, 4, 2), randn(1, 2, 4, 2), mask=torch.ones(1, 5)),
        lambda: attention_loss(maps_of(4), maps_of(5)),
        lambda: attention_loss(maps_of(4), maps_of(4), kind="cosine"),
        lambda: relation_loss(randn(1, 4, 6), randn(1, 4, 8), 4),
        lambda: relation_loss(randn(4, 6), randn(4, 6), 2),
        lambda: relation_loss(randn(1, 4, 6), randn(1, 5, 6), 2),
        lambda: hidden_state_loss(randn(3, 4), randn(3, 5)),
        lambda: hidden_state_loss(randn(3, 4), randn(3, 4), kind="l1"),
        lambda: hidden_state_loss(randn(3, 4), randn(3, 4), mask=torch.ones(4)),
    ],
)
def test_shapes_that_do_not_fit_are_value_errors(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\d|kind"):
        call()


def test_attention_loss_of_real_gpt2_maps_agrees_with_a_loop(shared_data: Path) -> None:
    with gzip.open(shared_data / "gpt2-logits" / "gpt2_examples.json.gz", "rt") as file:
        found = json.load(file)[0]["attn_softmax"]
    layers = [
        torch.tensor([[found[f"block_{b}_attn_head_{h}_attn_softmax"] for h in range(12)]]).double()
        for b in (0, 5, 11)
    ]
    for layer in layers:
        assert layer.shape == (1, 12, 6, 6)
        assert (layer.triu(1) == 0).all()
    for student, teacher in ((layers[0], layers[1]), (layers[2][:, :4], layers[1])):
        heads = 12 if student.shape[1] == 12 else 1
        s, t = (student, teacher) if heads == 12 else (student.mean(1, True), teacher.mean(1, True))
        for kind in ("kl", "mse"):
            got = attention_loss(student.log(), teacher.log(), kind=kind)
            torch.testing.assert_close(got, loss_reference(s, t, kind))


# Relations.


@pytest.mark.parametrize("causal", [True, False])
def test_relation_loss_agrees_with_a_loop_for_different_heads_and_widths(causal: bool) -> None:
    student, teacher = randn(2, 2, 5, 6), randn(2, 3, 5, 8)  # widths 12 and 24, head counts 2 and 3
    relation_heads = 4
    maps = []
    for x in (student, teacher):
        flat = torch.cat([x[:, h] for h in range(x.shape[1])], -1)
        dim = flat.shape[-1] // relation_heads
        split = torch.stack([flat[..., h * dim : (h + 1) * dim] for h in range(relation_heads)], 1)
        maps.append(map_reference(split, split, PADDING, causal, 1 / math.sqrt(dim)))
    want = loss_reference(maps[0], maps[1], "kl")
    got = relation_loss(student, teacher, relation_heads, mask=PADDING, causal=causal)
    torch.testing.assert_close(got, want)
    flat = student.transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(relation_loss(flat, teacher, relation_heads, mask=PADDING, causal=causal), got)


def test_relations_pass_gradcheck_and_vanish_between_rotated_copies() -> None:
    student, teacher = randn(2, 5, 6).requires_grad_(), randn(2, 5, 9)
    assert torch.autograd.gradcheck(lambda s: relation_loss(s, teacher, 3, mask=PADDING), student)
    turn = torch.linalg.qr(randn(9, 9)).Q  # a relation does not see how its vectors are turned
    torch.testing.assert_close(
        relation_loss(teacher @ turn, teacher, 1), torch.zeros(2, 5).double(), rtol=0, atol=1e-12
    )


def test_rows_do_not_know_their_batch() -> None:
    """One value a token, whatever stands beside it: micro-batches and accumulation change nothing."""
    q, k, tq, tk = (randn(6, 2, 5, 3) for _ in range(4))
    mask = torch.rand(6, 5) > 0.3
    labels = torch.randint(0, 3, (6,))

    def values(rows: slice) -> list[Tensor]:
        real = mask[rows]
        return [
            attention_loss(
                attention_maps(q[rows], k[rows], mask=real), attention_maps(tq[rows], tk[rows], mask=real)
            ),
            relation_loss(q[rows], tq[rows], 3, mask=real),
            hidden_state_loss(q[rows, 0], tq[rows, 0], mask=real),
            classifier_loss(q[rows, 0, 0], tq[rows, 0, 0], labels[rows]),
            patience_loss(q[rows, 0], tq[rows, 0]),
        ]

    parts = [values(rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for whole, *pieces in zip(values(slice(0, 6)), *parts, strict=True):
        torch.testing.assert_close(torch.cat(pieces), whole)


# Captured from real models.


def tiny(kind: str) -> nn.Module:
    shape = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }
    grouped = {"num_key_value_heads": 2, **shape}
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**grouped)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**grouped)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **grouped)),
        "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**grouped)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, **grouped)),
        "bert": lambda: BertModel(BertConfig(**shape), add_pooling_layer=False),
    }[kind]().eval()
    with torch.no_grad():  # untrained models look everywhere alike
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.dim() == 2 else parameter.add_(torch.randn_like(parameter) / 4)
    return model


def attention_modules(model: nn.Module, kind: str) -> dict[int, nn.Module]:
    if kind == "bert":
        return {i: layer.attention.self for i, layer in enumerate(model.encoder.layer, 1)}
    return {i: layer.self_attn for i, layer in enumerate(model.model.layers, 1)}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "gemma3", "bert"])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_captured_maps_are_the_models_own_eager_ones(kind: str, side: str | None) -> None:
    model = tiny(kind)
    real = torch.ones(2, 7, dtype=torch.bool)
    if side:
        real[0, slice(0, 3) if side == "left" else slice(4, 7)] = False
    ids = torch.randint(1, 50, (2, 7)).masked_fill(~real, 0)
    more = {} if kind == "bert" else {"position_ids": (real.cumsum(-1) - 1).clamp(min=0)}
    with capture_attention(attention_modules(model, kind)) as caught:
        out = model(input_ids=ids, attention_mask=real.long(), output_attentions=True, **more)
    assert sorted(caught) == [1, 2, 3]
    for layer, seen in caught.items():
        maps = attention_maps(seen.query, seen.key, mask=real, causal=kind != "bert", scale=seen.scale).exp()
        want = out.attentions[layer - 1]
        queries = real[:, None, :, None].expand_as(want)
        assert want.std() > 0.05  # nothing would be shown by flat maps
        torch.testing.assert_close(maps[queries], want[queries], rtol=1e-4, atol=1e-5)
        assert (maps[~queries] == 0).all()


def test_capture_sees_the_same_on_the_sdpa_path_and_leaves_no_hooks() -> None:
    model = tiny("llama")
    modules = attention_modules(model, "llama")
    ids = torch.randint(1, 50, (2, 7))
    seen: list[dict[int, Captured]] = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with capture_attention(modules) as caught:
            model(input_ids=ids)
        seen.append(caught)
    for layer in modules:
        for name in ("query", "key", "value", "output"):
            torch.testing.assert_close(
                getattr(seen[0][layer], name), getattr(seen[1][layer], name), rtol=1e-4, atol=1e-4
            )
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_flow_from_captured_maps_and_relations_into_the_student() -> None:
    student, teacher = tiny("llama"), tiny("qwen2")
    ids = torch.randint(1, 50, (2, 7))
    with capture_attention({3: student.model.layers[2].self_attn}) as ours:
        student(input_ids=ids)
    with torch.no_grad(), capture_attention({3: teacher.model.layers[2].self_attn}) as theirs:
        teacher(input_ids=ids)
    s, t = ours[3], theirs[3]
    assert s.value.shape == (2, 2, 7, 8)
    components = {
        (3, "attention"): attention_loss(
            attention_maps(s.query, s.key, scale=s.scale), attention_maps(t.query, t.key, scale=t.scale)
        ),
        (3, "value"): relation_loss(s.value, t.value, 4, causal=True),
        (3, "attention_output"): hidden_state_loss(s.output, t.output, kind="cosine"),
    }
    total = weighted_components(components, MatchWeights())
    assert total.shape == (2, 7)
    total.mean().backward()
    last = student.model.layers[2].self_attn
    for projection in (last.q_proj, last.k_proj, last.v_proj, last.o_proj):
        assert projection.weight.grad.abs().sum() > 0
    assert student.lm_head.weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_a_window_is_refused_as_soon_as_it_hides_something() -> None:
    model = tiny("llama")
    module = model.model.layers[0].self_attn
    module.sliding_window = 5
    with capture_attention({1: module}) as caught:
        model(input_ids=torch.ones(1, 5, dtype=torch.int64))
    assert caught[1].query.shape == (1, 4, 5, 8)
    with (
        pytest.raises(ValueError, match="a window of 5 hides part of the 6 tokens"),
        capture_attention({1: module}),
    ):
        model(input_ids=torch.ones(1, 6, dtype=torch.int64))


def test_attention_that_is_not_a_plain_scaled_product_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    refusals: list[tuple[nn.Module, str]] = [(gpt2.transformer.h[0].attn, "no separate query, key and value")]
    capped = tiny("llama").model.layers[0].self_attn
    capped.attn_logit_softcapping = 50.0
    refusals.append((capped, "attn_logit_softcapping"))
    for module, message in refusals:
        with pytest.raises(ValueError, match=message), capture_attention({1: module}):
            pass
    cohere = CohereForCausalLM(
        CohereConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with (
        pytest.raises(ValueError, match="does not turn halves"),
        capture_attention({1: cohere.model.layers[0].self_attn}),
    ):
        cohere(input_ids=torch.ones(1, 4, dtype=torch.int64))


# Classifiers.


def softmax_loop(logits: list[float], t: float) -> list[float]:
    top = max(logits)
    exps = [math.exp((x - top) / t) for x in logits]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_classifier_loss_agrees_with_a_loop(alpha: float, t: float) -> None:
    student, teacher, labels = randn(6, 5) * 3, randn(6, 5) * 3, torch.randint(0, 5, (6,))
    want = []
    for s, z, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        q, p = softmax_loop(s, t), softmax_loop(z, t)
        soft = t * t * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        want.append(alpha * soft - (1 - alpha) * math.log(softmax_loop(s, 1.0)[y]))
    got = classifier_loss(student, teacher, labels, alpha=alpha, temperature=t)
    torch.testing.assert_close(got.tolist(), want)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_multi_label_loss_agrees_with_a_loop_over_coins(alpha: float, t: float) -> None:
    student, teacher, labels = randn(6, 5) * 3, randn(6, 5) * 3, torch.rand(6, 5).round()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    want = []
    for i in range(6):
        total = 0.0
        for s, z, y in zip(student[i].tolist(), teacher[i].tolist(), labels[i].tolist(), strict=True):
            q, p = sigmoid(s / t), sigmoid(z / t)
            total += alpha * t * t * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
            total -= (1 - alpha) * math.log(sigmoid(s) if y else 1 - sigmoid(s))
        want.append(total)
    got = classifier_loss(student, teacher, labels, alpha=alpha, temperature=t, multi_label=True)
    torch.testing.assert_close(got.tolist(), want)


@pytest.mark.parametrize("multi", [False, True])
def test_classifier_loss_passes_gradcheck_and_is_zero_at_equality(multi: bool) -> None:
    student, teacher = randn(4, 3).requires_grad_(), randn(4, 3)
    labels = torch.rand(4, 3) if multi else torch.randint(0, 3, (4,))
    assert torch.autograd.gradcheck(
        lambda s: classifier_loss(s, teacher, labels, alpha=0.4, temperature=2.0, multi_label=multi), student
    )
    same = classifier_loss(teacher, teacher, alpha=1.0, multi_label=multi)
    torch.testing.assert_close(same, torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_single_label_soft_term_is_forward_kl() -> None:
    student, teacher = randn(4, 3), randn(4, 3)
    assert classifier_loss(student, teacher, alpha=1.0, temperature=3.0).equal(
        forward_kl(student, teacher, 3.0)
    )


@given(
    scale=st.sampled_from([1e-6, 1.0, 1e4, 1e30]),
    t=st.sampled_from([0.1, 1.0, 20.0]),
    multi=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_classifier_loss_stays_finite_for_extreme_logits(
    scale: float, t: float, multi: bool, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(3, 4, generator=g) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(3, 4, generator=g) * scale).to(dtype)
    teacher[:, 1] = -math.inf
    labels = torch.ones(3, 4) if multi else torch.zeros(3, dtype=torch.int64)
    values = classifier_loss(student, teacher, labels, temperature=t, multi_label=multi)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_patience_is_the_distance_of_unit_states_summed_over_layers() -> None:
    student, teacher = randn(3, 4, 6).requires_grad_(), randn(3, 4, 6)
    want = [
        sum(
            sum((a / math.hypot(*s) - b / math.hypot(*t)) ** 2 for a, b in zip(s, t, strict=True))
            for s, t in zip(row_s, row_t, strict=True)
        )
        for row_s, row_t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(patience_loss(student, teacher).tolist(), want)
    assert torch.autograd.gradcheck(lambda s: patience_loss(s, teacher), student)
    torch.testing.assert_close(
        patience_loss(5 * teacher, teacher), torch.zeros(3).double(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda x: classifier_loss(x, x, torch.zeros(3, dtype=torch.int64), alpha=1.2),
        lambda x: classifier_loss(x, x, torch.zeros(3, dtype=torch.int64), temperature=0.0),
        lambda x: classifier_loss(x, x[:, :2], torch.zeros(3, dtype=torch.int64)),
        lambda x: classifier_loss(x, x),
        lambda x: classifier_loss(x, x, torch.full((3,), 4)),
        lambda x: classifier_loss(x, x, torch.full((3,), -100)),
        lambda x: classifier_loss(x, x, torch.zeros(3), multi_label=True),
        lambda x: classifier_loss(x, x, torch.full((3, 4), 1.5), multi_label=True),
        lambda x: patience_loss(x, x),
    ],
)
def test_classifier_arguments_that_do_not_fit_are_value_errors(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        call(torch.zeros(3, 4))
