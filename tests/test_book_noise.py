"""What is said of the error of sampled targets is what the error is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.signals import capture, choose, outlook
from stillroom.signals.counter import mix
from stillroom.signals.error import level_error, noise, squared_error

VOCAB = 3000


def logits(scale: float, tokens: int = 6) -> Tensor:
    return torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("budget", [24, 64])
def test_the_expected_squared_error_is_the_mean_over_many_captures(scale: float, budget: int) -> None:
    x, seeds = logits(scale), 400
    p = x.double().softmax(-1)
    got = capture(x.repeat_interleave(seeds, 0), keys=mix(torch.arange(6 * seeds)), budget=budget)
    off = (got.to_dense(VOCAB).double().view(6, seeds, VOCAB) - p[:, None]).square().sum(-1)
    said = squared_error(got.select(slice(0, None, seeds)), p)
    assert ((off.mean(1) - said).abs() < 5 * off.std(1) / seeds**0.5 + 0.02 * said + 1e-9).all()


def test_rounding_error_of_codes_is_its_variance() -> None:
    from stillroom.signals.codes import level, round_weights

    u = (torch.arange(100_000).double() + 0.5) / 100_000
    for w in (0.9, 0.031, 2e-4, 3e-6):
        values = level(round_weights(torch.full_like(u, w), u).long())
        assert float(level_error(torch.tensor([w]).double())) == pytest.approx(float(values.var()), rel=1e-2)


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0])
def test_a_book_s_own_word_is_a_bound_on_the_noise(scale: float) -> None:
    x = logits(scale, 200)
    p = x.double().softmax(-1)
    for budget in (24, 64):
        got = capture(x, keys=mix(torch.arange(200)), budget=budget)
        (found,) = outlook(x, budgets=[budget])
        codes = float(squared_error(got, p).sum())
        assert found.noise == pytest.approx(
            math.sqrt(codes / float((1 - p.square().sum(-1)).sum())), rel=1e-6
        )
        assert found.noise < 1.02 * noise(got) + 0.01
        assert found.bytes_per_token == pytest.approx(got.bytes_per_token(VOCAB), rel=0.05)


def test_more_bytes_mean_less_noise_and_choose_takes_the_first_that_is_enough() -> None:
    x = logits(3.0, 100)
    found = outlook(x, budgets=(16, 24, 36, 64, 128))
    values = [item.noise for item in found]
    assert values == sorted(values, reverse=True)
    assert all(item.bytes_per_token <= item.budget for item in found)
    assert found[0].labels == pytest.approx(1 / found[0].noise ** 2)
    want = next(item for item in found if item.noise <= 0.2)
    assert choose(x, noise=0.2, budgets=(128, 64, 36, 24, 16)) == want
    assert choose(x, noise=0.0, budgets=(16, 24)).budget == 24


def test_a_bucket_has_no_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="depends on the student"):
        noise(capture(logits(2.0), keys=torch.arange(6), kind="top-k"))
