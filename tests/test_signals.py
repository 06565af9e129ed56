"""Captured signals are unbiased, depend on a token alone, and cost what they say."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.losses import forward_kl, sparse_forward_kl
from stillroom.signals import Signals, capture, from_top_logprobs, token_keys
from stillroom.signals.codes import level, round_weights
from stillroom.signals.counter import mix, uniform

VOCAB = 50257


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tensor:
    """Five real next-token distributions of GPT-2, as logits `[5, 50257]`."""
    with gzip.open(shared_data / "gpt2-logits" / "gpt2_examples.json.gz") as file:
        return torch.tensor([example["last_logits"] for example in json.load(file)])


def same(a: Signals, b: Signals) -> bool:
    names = (*a.entry_fields, *a.token_fields, "offsets")
    return all(getattr(a, name).equal(getattr(b, name)) for name in names)


# Random numbers.


def test_the_hash_is_splitmix64() -> None:
    """SplitMix64 seeded with 0: its first outputs as published with the reference implementation."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([(golden * i + 2**63) % 2**64 - 2**63 for i in (1, 2, 3)])
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [x % 2**64 for x in mix(states).tolist()] == want


def test_uniform_numbers_are_uniform_over_keys_and_over_counters() -> None:
    for u in (uniform(torch.arange(40_000), 0), uniform(torch.tensor(7), torch.arange(40_000))):
        assert float(u.min()) >= 0
        assert float(u.max()) < 1
        counts = torch.histc(u, 20, 0, 1)
        assert float(((counts - 2000) ** 2 / 2000).sum()) < 45  # chi squared, 19 degrees: p about 7e-4


def test_token_keys_differ_between_rows_and_positions() -> None:
    keys = torch.cat([token_keys(f"{i:032x}"[::-1], torch.arange(100)) for i in range(50)])
    assert keys.unique().numel() == 5000


# Codes.


def test_rounding_to_codes_is_unbiased() -> None:
    weights = torch.tensor([0.93, 0.5, 0.0123, 3e-4, 2e-5, 4e-6, 0.0]).double()
    u = (torch.arange(200_000).double() + 0.5) / 200_000
    for w in weights:
        mean = level(round_weights(w.expand_as(u), u).long()).mean()
        torch.testing.assert_close(mean, w, rtol=1e-4, atol=1e-9)


# Capture.


@pytest.mark.parametrize(("t", "sharper"), [(1.0, 1.0), (2.0, 6.0)])
def test_capture_is_unbiased_on_real_distributions(gpt2: Tensor, t: float, sharper: float) -> None:
    seeds = 500
    logits = gpt2[:2] * sharper
    p = (logits.double() / t).softmax(-1)
    total, squares = torch.zeros(2, VOCAB).double(), torch.zeros(2, VOCAB).double()
    for first in range(0, seeds, 100):
        keys = mix(torch.arange(first, first + 100)).repeat(2)
        got = capture(logits.repeat_interleave(100, 0), keys=keys, temperature=t)
        for row in range(2):
            part = got.select(slice(100 * row, 100 * row + 100))
            weights = part.weights.double()
            total[row].index_add_(0, part.ids, weights)
            squares[row].index_add_(0, part.ids, weights**2)
    mean = total / seeds
    error = ((squares / seeds - mean**2).clamp(min=0) / seeds).sqrt()
    # Tokens one by one, where there are enough draws for a normal error ...
    often = p > 5e-3
    assert (((mean - p).abs() / (error + 1e-6))[often] < 5).all()
    # ... and the others in groups of equal mass, which single ids cannot hide a bias in.
    for row in range(2):
        order = p[row].argsort(descending=True)
        group = (p[row][order].cumsum(0) * 40).long().clamp(max=39)
        mass = torch.zeros(40).double().index_add_(0, group, p[row][order])
        drawn = torch.zeros(40).double().index_add_(0, group, mean[row][order])
        torch.testing.assert_close(drawn, mass, rtol=0, atol=0.02)


def test_loss_and_gradient_are_unbiased_on_real_distributions(gpt2: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (gpt2[1:2] + torch.randn(1, VOCAB, generator=generator)).requires_grad_()
    (want,) = torch.autograd.grad(forward_kl(student, gpt2[1:2]).sum(), student)
    value = forward_kl(student.detach(), gpt2[1:2])
    seeds = 200
    got = capture(gpt2[1:2].expand(seeds, -1), keys=mix(torch.arange(seeds)))
    values = sparse_forward_kl(student.detach().expand(seeds, -1), got)
    spread = float(values.std()) / math.sqrt(seeds)
    assert abs(float(values.mean()) - float(value)) < 4 * spread + 1e-3
    # The gradient is softmax(student) - weights; its mean along a fixed direction must be the dense one's.
    direction = gpt2[1] - gpt2[1].mean()
    along = (student.detach().softmax(-1) * direction).sum() - got.to_dense(VOCAB) @ direction
    error = float(along.std()) / math.sqrt(seeds)
    assert abs(float(along.mean()) - float(want[0] @ direction)) < 4 * error


def test_weights_of_each_token_sum_to_one(gpt2: Tensor) -> None:
    for kind in ("head+draws", "top-k"):
        got = capture(gpt2.repeat(20, 1), keys=torch.arange(100), kind=kind)
        sums = got.to_dense(VOCAB).double().sum(-1) + got.tail_mass.double()
        torch.testing.assert_close(sums, torch.ones(100).double(), rtol=0, atol=1e-6)


def test_renormalised_top_k_is_not_unbiased_and_draws_are(gpt2: Tensor) -> None:
    """Why the tail is drawn from: cutting it off gives the head mass that it does not have."""
    p = gpt2[3].double().softmax(-1)
    top, ids = p.topk(12)
    cut = top / top.sum()
    assert float(cut[0] - p[ids[0]]) > 0.05
    got = capture(gpt2[3:4].expand(300, -1), keys=mix(torch.arange(300)))
    mean = got.to_dense(VOCAB).double().mean(0)
    assert float((mean[ids] - top).abs().max()) < 0.02


def test_head_and_draws_err_less_than_fifty_draws_at_no_more_bytes(gpt2: Tensor) -> None:
    logits, seeds = gpt2 * 2, 20  # about as sure as an instruction-tuned teacher
    p = logits.double().softmax(-1)
    got = capture(logits.repeat_interleave(seeds, 0), keys=torch.arange(5 * seeds))
    ours = ((got.to_dense(VOCAB).double().view(5, seeds, -1) - p[:, None]) ** 2).sum(-1).mean()
    draws = torch.multinomial(p, 50 * seeds, replacement=True, generator=torch.Generator().manual_seed(0))
    counts = (
        torch.zeros(5, seeds, VOCAB)
        .double()
        .scatter_add_(2, draws.view(5, seeds, 50), torch.ones(5, seeds, 50).double())
    )
    theirs = ((counts / 50 - p[:, None]) ** 2).sum(-1).mean()
    assert got.bytes_per_token(VOCAB) < float((counts > 0).sum(-1).double().mean()) * 3
    assert float(ours) < float(theirs) / 2


def test_capture_depends_on_a_token_alone_not_on_batch_or_order(gpt2: Tensor) -> None:
    logits = torch.cat([gpt2, gpt2 * 3, gpt2 / 2])
    keys = token_keys("00112233445566778899aabbccddeeff", torch.arange(15))
    for kind in ("head+draws", "top-k"):
        whole = capture(logits, keys=keys, kind=kind)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
        assert same(capture(logits[order], keys=keys[order], kind=kind), whole.select(order))
        parts = [capture(logits[i : i + 4], keys=keys[i : i + 4], kind=kind) for i in range(0, 15, 4)]
        assert same(Signals.cat(parts), whole)
        assert not same(capture(logits, keys=keys + 1, kind=kind), whole)


def test_the_budget_is_never_exceeded_and_hardly_used_by_a_sure_teacher(gpt2: Tensor) -> None:
    for kind in ("head+draws", "top-k"):
        for budget in (8, 12, 36, 100):
            flat = capture(gpt2, keys=torch.arange(5), budget=budget, kind=kind)
            for i in range(5):
                assert flat.select(slice(i, i + 1)).bytes_per_token(VOCAB) <= budget
            assert flat.bytes_per_token(VOCAB) > 0.8 * budget - 2
    sure = capture(gpt2 * 10, keys=torch.arange(5))
    assert sure.bytes_per_token(VOCAB) <= 12
    with pytest.raises(BookError, match="does not hold a single token"):
        capture(gpt2, keys=torch.arange(5), budget=5)


def test_entropy_makes_the_value_a_true_kl(gpt2: Tensor) -> None:
    """Zero on average at equality, and never more than dense for a bucket."""
    seeds = 150
    got = capture(gpt2[:1].expand(seeds, -1), keys=mix(torch.arange(seeds)))
    values = sparse_forward_kl(gpt2[:1].expand(seeds, -1), got)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(seeds) + 1e-3
    top = capture(gpt2[:1].expand(seeds, -1), keys=mix(torch.arange(seeds)), kind="top-k")
    values = sparse_forward_kl(gpt2[:1].expand(seeds, -1), top)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(seeds) + 1e-3


@given(
    vocab=st.integers(2, 300),
    scale=st.sampled_from([0.0, 1.0, 10.0, 1e4]),
    budget=st.integers(8, 300),
    kind=st.sampled_from(["head+draws", "top-k"]),
    forbidden=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_any_distribution_gives_proper_weights_on_allowed_tokens(
    vocab: int, scale: float, budget: int, kind: str, forbidden: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, vocab, generator=g) * scale
    if forbidden:
        logits[:, vocab // 2 :] = -math.inf
    got = capture(logits, keys=torch.arange(6), budget=budget, kind=kind)
    dense = got.to_dense(vocab)
    torch.testing.assert_close(dense.sum(-1) + got.tail_mass, torch.ones(6), rtol=0, atol=1e-5)
    assert (got.counts >= 1).all()
    assert (dense > -0.2).all()  # the first weight is what the others leave; rounding may take it below zero
    assert (got.entropy >= 0).all()
    assert got.entropy.max() <= math.log(vocab) + 1e-3
    assert got.bytes_per_token(vocab) <= budget
    if forbidden:
        assert (dense[:, vocab // 2 :] == 0).all()


def test_every_token_kept_gives_the_distribution_itself() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    many = capture(logits.repeat_interleave(1000, 0), keys=mix(torch.arange(4000)), budget=64)
    assert (many.counts == 6).all()
    mean = many.to_dense(6).view(4, 1000, 6).mean(1)
    torch.testing.assert_close(mean, logits.softmax(-1), rtol=0, atol=3e-3)


def test_a_bucket_over_no_token_at_all_is_empty() -> None:
    logits = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0)) * 3
    got = capture(logits, keys=torch.arange(3000), budget=64, kind="top-k")
    assert (got.tail_mass == 0).all()
    assert sparse_forward_kl(logits, got).isfinite().all()


def test_logits_that_are_no_distribution_are_refused() -> None:
    for bad in (math.nan, -math.inf, math.inf):
        with pytest.raises(ValueError, match="no distribution"):
            capture(torch.full((1, 5), bad), keys=torch.arange(1))
    with pytest.raises(ValueError, match="keys int64"):
        capture(torch.zeros(2, 5), keys=torch.arange(3))


# Log-probabilities from an API.


def test_top_logprobs_become_a_bucketed_distribution() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 2
    logprobs, ids = logits.log_softmax(-1).topk(5)
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    many = [
        from_top_logprobs(ids[:, shuffle], logprobs[:, shuffle], keys=mix(torch.arange(3) + 3 * i))
        for i in range(800)
    ]
    joined = Signals.cat(many)
    assert joined.bucket
    assert joined.temperature == 1.0
    mean = joined.to_dense(40).view(800, 3, 40).mean(0)
    want = torch.zeros(3, 40).scatter_(1, ids, logprobs.exp())
    torch.testing.assert_close(mean, want, rtol=0, atol=3e-3)
    torch.testing.assert_close(joined.tail_mass[:3], 1 - want.sum(-1), rtol=0, atol=1e-4)
    values = sparse_forward_kl(logits.repeat(800, 1), joined)
    assert abs(float(values.mean())) < 1e-3


def test_top_logprobs_may_be_ragged_and_overshoot_one_by_rounding_only() -> None:
    ids = torch.tensor([[5, 9, 0]])
    got = from_top_logprobs(ids, torch.tensor([[-0.1, -3.0, -math.inf]]))
    assert got.ids.tolist() == [5, 9]
    exact = from_top_logprobs(ids, torch.tensor([[math.log(0.9001), math.log(0.1), -math.inf]]))
    assert float(exact.tail_mass) == 0
    with pytest.raises(ValueError, match="sum to"):
        from_top_logprobs(ids, torch.tensor([[0.0, -0.1, -0.2]]))
    with pytest.raises(ValueError, match=r"\[tokens, k\]"):
        from_top_logprobs(ids, torch.zeros(1, 2))


def test_without_keys_rounding_follows_from_the_content() -> None:
    ids, logprobs = torch.tensor([[5, 9], [6, 9]]), torch.tensor([[-0.1, -3.0], [-0.1, -3.0]])
    assert same(from_top_logprobs(ids, logprobs), from_top_logprobs(ids, logprobs))
    assert same(
        from_top_logprobs(ids[1:], logprobs[1:]), from_top_logprobs(ids, logprobs).select(slice(1, 2))
    )
