"""Reverse KL from the teacher's word on a few of the student's tokens: exact when all are scored, right on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_given import seeded  # noqa: F401
from torch import Tensor

from stillroom.losses import (
    ScoredTokens,
    alpha_beta,
    forward_kl,
    fused_linear_divergence,
    reverse_kl,
    scored_reverse_kl,
    scored_skew_reverse_kl,
    skew_reverse_kl,
    taid,
)

PAIRS = [
    pytest.param(scored_reverse_kl, reverse_kl, id="reverse"),
    pytest.param(scored_skew_reverse_kl, skew_reverse_kl, id="skew"),
    pytest.param(
        partial(scored_skew_reverse_kl, alpha=0.6), partial(skew_reverse_kl, alpha=0.6), id="skew .6"
    ),
]
each_loss = pytest.mark.parametrize(("scored", "dense"), PAIRS)
Loss = Callable[..., Tensor]


def pair(tokens: int = 6, vocab: int = 13) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, vocab).double().mul(2).requires_grad_(), torch.randn(
        tokens, vocab
    ).double() * 2


def top(student: Tensor, teacher: Tensor, k: int, t: float = 1.0) -> ScoredTokens:
    """The teacher's log-probabilities, at T, of the student's k likeliest tokens."""
    ids = student.detach().topk(k).indices
    return ScoredTokens(ids, (teacher / t).log_softmax(-1).gather(1, ids), temperature=t)


@each_loss
@pytest.mark.parametrize("t", [1.0, 2.5])
@pytest.mark.parametrize("forbidden", [False, True])
def test_with_every_token_scored_value_and_gradient_are_dense(
    scored: Loss, dense: Loss, t: float, forbidden: bool
) -> None:
    student, teacher = pair()
    if forbidden:
        teacher[:, 3:6] = -math.inf
    want = dense(student, teacher, t)
    got = scored(student, top(student, teacher, 13, t), t)
    torch.testing.assert_close(got, want)
    expected, gradient = (torch.autograd.grad((v * torch.arange(6)).sum(), student)[0] for v in (want, got))
    torch.testing.assert_close(gradient, expected)


@each_loss
def test_padding_columns_scored_as_forbidden_are_as_in_the_dense_loss(scored: Loss, dense: Loss) -> None:
    student, teacher = pair()
    narrow = teacher[:, :10]
    ids = torch.arange(13).expand(6, -1)
    logprobs = torch.nn.functional.pad(narrow.log_softmax(-1), (0, 3), value=-math.inf)
    got = scored(student, ScoredTokens(ids, logprobs))
    torch.testing.assert_close(got, dense(student, narrow))
    expected, gradient = (torch.autograd.grad(v.sum(), student)[0] for v in (dense(student, narrow), got))
    torch.testing.assert_close(gradient, expected)


@each_loss
@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_top_k_is_the_divergence_of_the_coarse_distributions(
    scored: Loss, dense: Loss, k: int, t: float
) -> None:
    student, teacher = pair()
    targets = top(student, teacher, k, t)
    got = scored(student, targets, t)
    coarse = []
    for logits in (student.detach(), teacher):
        probabilities = (logits / t).softmax(-1)
        kept = probabilities.gather(1, targets.ids)
        coarse.append(torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], 1).log())
    torch.testing.assert_close(got.detach(), t * t * dense(*coarse), rtol=1e-6, atol=1e-8)
    assert (got <= dense(student, teacher, t) + 1e-9).all()  # what a bucket hides can only lessen it
    assert torch.autograd.gradcheck(lambda x: scored(x, targets, t), student)


@each_loss
def test_a_student_equal_to_the_teacher_is_at_zero_and_stays_there(scored: Loss, dense: Loss) -> None:
    teacher = torch.randn(5, 40) * 3
    student = (teacher + 2).requires_grad_()
    values = scored(student, top(student, teacher, 8, 2.0), 2.0)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros(5, 40), rtol=0, atol=1e-5)


def test_the_bucket_pulls_up_what_the_student_underrates_as_a_whole() -> None:
    student = torch.tensor([[9.0, 8.0, 0, 0, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0, 5, 0, 0, 0]])
    scored_reverse_kl(student, top(student, teacher, 2)).sum().backward()
    assert student.grad is not None
    assert (student.grad[0, 2:] < 0).all()


# Sampled tokens.


@each_loss
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_the_sampled_form_is_unbiased_in_value_and_gradient(scored: Loss, dense: Loss, t: float) -> None:
    """By enumeration: each token of the vocabulary is the sample once, weighed by the student's probability."""
    vocab = 7
    student, teacher = pair(1, vocab)
    want = dense(student, teacher, t)
    (expected,) = torch.autograd.grad(want.sum(), student)
    q = (student.detach() / t).softmax(-1)[0]
    ids = torch.arange(vocab)[:, None]
    logprobs = (teacher / t).log_softmax(-1).T
    rows = student.detach().expand(vocab, -1).clone().requires_grad_()
    values = scored(rows, ScoredTokens(ids, logprobs, sampled=True, temperature=t), t)
    (gradients,) = torch.autograd.grad(values.sum(), rows)
    torch.testing.assert_close(q @ values.detach(), want.detach()[0])
    torch.testing.assert_close(q @ gradients, expected[0])


def test_differentiating_the_sampled_value_itself_would_teach_nothing() -> None:
    """The trap that the form avoids: the mean of that gradient is zero, whatever the teacher says."""
    student, teacher = pair(1, 7)
    q = student.detach().softmax(-1)[0]
    naive = q @ (student.log_softmax(-1) - teacher.log_softmax(-1))[0]
    torch.testing.assert_close(torch.autograd.grad(naive, student)[0], torch.zeros(1, 7).double())


def test_a_sampled_gradient_is_the_log_ratio_times_the_gradient_of_the_students_log_probability() -> None:
    student, teacher = pair()
    ids = torch.randint(0, 13, (6, 1))
    targets = ScoredTokens(ids, teacher.log_softmax(-1).gather(1, ids), sampled=True)
    values = scored_reverse_kl(student, targets)
    log_q = student.log_softmax(-1).gather(1, ids)[:, 0]
    ratio = (log_q - targets.teacher_logprobs[:, 0]).detach()
    torch.testing.assert_close(values.detach(), ratio)
    (expected,) = torch.autograd.grad((ratio * log_q).sum(), student)
    torch.testing.assert_close(torch.autograd.grad(values.sum(), student)[0], expected)


# Fused.


def problem() -> dict[str, Tensor]:
    return {
        "hidden": torch.randn(11, 8).double().requires_grad_(),
        "weight": torch.randn(37, 8).double().requires_grad_(),
        "bias": torch.randn(37).double().requires_grad_(),
        "a": torch.randn(3, 8).double().requires_grad_(),
        "b": torch.randn(37, 3).double().requires_grad_(),
        "teacher": torch.randn(11, 37).double() * 2,
        "weights": torch.rand(11).double(),
    }


PARAMETERS = ("hidden", "weight", "bias", "a", "b")


def logits_of(p: dict[str, Tensor]) -> Tensor:
    z = (p["hidden"] @ (p["weight"] + 0.5 * p["b"] @ p["a"]).T + p["bias"]) * 0.7
    return 5.0 * torch.tanh(z / 5.0)


@each_loss
@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("kind", ["top", "all", "sampled"])
def test_fused_equals_unfused_for_any_chunk_length(scored: Loss, dense: Loss, chunk: int, kind: str) -> None:
    p, t = problem(), 2.0
    logits = logits_of(p)
    targets = top(logits, p["teacher"], {"top": 5, "all": 37, "sampled": 1}[kind], t)
    if kind == "sampled":
        targets = ScoredTokens(targets.ids, targets.teacher_logprobs, sampled=True, temperature=t)
    values = dense(logits, p["teacher"], t) if kind == "all" else scored(logits, targets, t)
    want = (values * p["weights"]).sum()
    expected = torch.autograd.grad(want, [p[k] for k in PARAMETERS])
    fused = fused_linear_divergence(
        p["hidden"],
        p["weight"],
        targets,
        weights=p["weights"],
        divergence=dense,
        temperature=t,
        student_bias=p["bias"],
        logit_scale=0.7,
        softcap=5.0,
        chunk_tokens=chunk,
        student_lora=(p["a"], p["b"], 0.5),
    )
    torch.testing.assert_close(fused.loss, want)
    torch.testing.assert_close(fused.values, values.detach())
    for got, e in zip(torch.autograd.grad(fused.loss, [p[k] for k in PARAMETERS]), expected, strict=True):
        torch.testing.assert_close(got, e)


def test_names_and_functions_of_the_dense_losses_pick_the_scored_ones() -> None:
    p = problem()
    targets = top(p["hidden"] @ p["weight"].T, p["teacher"], 4)
    for divergence, want in (
        ("reverse_kl", scored_reverse_kl),
        (reverse_kl, scored_reverse_kl),
        ("skew_reverse_kl", scored_skew_reverse_kl),
        (skew_reverse_kl, scored_skew_reverse_kl),
        (partial(skew_reverse_kl, alpha=0.3), partial(scored_skew_reverse_kl, alpha=0.3)),
    ):
        fused = fused_linear_divergence(p["hidden"], p["weight"], targets, divergence=divergence)
        torch.testing.assert_close(fused.values, want(p["hidden"] @ p["weight"].T, targets).detach())


def test_rows_of_weight_zero_may_hold_anything() -> None:
    p = problem()
    targets = top(p["hidden"] @ p["weight"].T, p["teacher"], 4)
    weights = p["weights"].clone()
    weights[::2] = 0
    ids, logprobs = targets.ids.clone(), targets.teacher_logprobs.clone()
    ids[::2], logprobs[::2] = -1, math.nan
    broken = ScoredTokens(ids, logprobs)
    want = fused_linear_divergence(
        p["hidden"], p["weight"], targets, weights=weights, divergence="reverse_kl"
    ).loss
    got = fused_linear_divergence(
        p["hidden"], p["weight"], broken, weights=weights, divergence="reverse_kl", chunk_tokens=2
    ).loss
    torch.testing.assert_close(got, want)
    masked = fused_linear_divergence(
        p["hidden"], p["weight"], broken, weights=torch.zeros(11), divergence="reverse_kl"
    ).loss
    assert masked == 0
    assert torch.autograd.grad(masked, p["weight"])[0].eq(0).all()


def test_micro_batches_add_up_and_positions_can_be_reordered() -> None:
    p = problem()
    targets = top(p["hidden"] @ p["weight"].T, p["teacher"], 4)
    run = partial(fused_linear_divergence, student_weight=p["weight"], divergence="skew_reverse_kl")
    whole = run(student_hidden=p["hidden"], teacher=targets, weights=p["weights"])
    parts = [
        run(student_hidden=p["hidden"][s], teacher=targets.select(s), weights=p["weights"][s]).loss
        for s in (slice(0, 2), slice(2, 7), slice(7, 11))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole.loss)
    order = torch.randperm(11)
    shuffled = run(student_hidden=p["hidden"][order], teacher=targets.select(order))
    torch.testing.assert_close(shuffled.values, whole.values[order])
    assert [piece.tokens for piece in targets.split(4)] == [4, 4, 3]
    joined = ScoredTokens.cat(targets.split(4))
    assert joined.ids.equal(targets.ids)
    assert joined.teacher_logprobs.equal(targets.teacher_logprobs)
    assert targets.to("cpu").ids.equal(targets.ids)


def test_half_logits_are_compared_in_fp32() -> None:
    student, teacher = pair()
    half = student.detach().bfloat16().requires_grad_()
    targets = top(student, teacher, 4)
    values = scored_reverse_kl(half, targets)
    assert values.dtype == torch.float32
    want = scored_reverse_kl(half.detach().double(), targets)
    torch.testing.assert_close(values.double(), want, rtol=1e-5, atol=1e-5)
    values.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


@given(
    tokens=st.integers(0, 4),
    vocab=st.integers(2, 12),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    forbidden=st.floats(0, 1),
    alpha=st.sampled_from([0.0, 0.1, 0.9]),
    sampled=st.booleans(),
    t=st.sampled_from([0.5, 1.0, 8.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=120, deadline=None)
def test_scored_losses_are_finite_for_extreme_logits_and_forbidden_tokens(
    tokens: int, vocab: int, scale: float, forbidden: float, alpha: float, sampled: bool, t: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(tokens, vocab, generator=g) * scale).requires_grad_()
    teacher = torch.randn(tokens, vocab, generator=g) * scale
    cut = torch.rand(tokens, vocab, generator=g) < (forbidden if alpha > 0 or not sampled else 0)
    cut[:, 0] = False
    teacher = teacher.masked_fill(cut, -math.inf)
    k = 1 if sampled else int(torch.randint(1, vocab + 1, (), generator=g))
    ids = torch.rand(tokens, vocab, generator=g).argsort(-1)[:, :k]
    logprobs = (teacher / t).log_softmax(-1).gather(1, ids)
    targets = ScoredTokens(ids, logprobs, sampled=sampled, temperature=t)
    values = scored_skew_reverse_kl(student, targets, t, alpha)
    assert values.shape == (tokens,)
    assert values.isfinite().all()
    if not sampled:
        assert (values >= -1e-4 * max(1.0, t * t)).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


# What is refused.


@pytest.mark.parametrize(
    "divergence",
    [
        "forward_kl",
        "jensen_shannon",
        "skew_kl",
        "total_variation",
        "alpha_beta",
        "renormalised_kl",
        forward_kl,
        partial(taid, t=0.5),
        partial(alpha_beta, alpha=0.0, beta=1.0),
    ],
)
def test_losses_that_weigh_by_the_teacher_refuse_scored_tokens(divergence: str) -> None:
    p = problem()
    targets = top(p["hidden"] @ p["weight"].T, p["teacher"], 4)
    with pytest.raises(ValueError, match="scored tokens serve reverse_kl and skew_reverse_kl only"):
        fused_linear_divergence(p["hidden"], p["weight"], targets, divergence=divergence)


def test_scored_tokens_of_another_temperature_are_refused() -> None:
    p = problem()
    targets = top(p["hidden"] @ p["weight"].T, p["teacher"], 4, t=2.0)
    with pytest.raises(ValueError, match=r"scored at temperature 2\.0, the loss asks for 1\.0"):
        fused_linear_divergence(p["hidden"], p["weight"], targets, divergence="reverse_kl")


def test_scored_tokens_of_different_kinds_are_not_joined() -> None:
    one = ScoredTokens(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    drawn = ScoredTokens(one.ids, one.teacher_logprobs, sampled=True)
    for parts in ([], [one, drawn]):
        with pytest.raises(ValueError, match=r"at least one|cannot be joined"):
            ScoredTokens.cat(parts)


def test_a_sampled_token_that_the_teacher_forbids_is_refused_by_reverse_kl_only() -> None:
    student, ids = torch.randn(2, 5), torch.tensor([[1], [2]])
    targets = ScoredTokens(ids, torch.tensor([[-1.0], [-math.inf]]), sampled=True)
    with pytest.raises(ValueError, match="no unbiased estimate"):
        scored_reverse_kl(student, targets)
    log_q = student.log_softmax(-1)[1, 2]
    values = scored_skew_reverse_kl(student, targets)
    torch.testing.assert_close(values[1], torch.tensor(-math.log(0.1)))
    assert log_q < 0


@pytest.mark.parametrize(
    ("ids", "logprobs", "more", "says"),
    [
        ([[0, 9]], [[-1.0, -2.0]], {}, "token ids 0 to 9, but there are 5 columns"),
        ([[0, -1]], [[-1.0, -2.0]], {}, "token ids -1 to 0"),
        ([[2, 2]], [[-1.0, -2.0]], {}, "twice at position 0"),
        ([[0, 1]], [[-0.1, -0.2]], {}, "sum to 1.7"),
        ([[0, 1]], [[math.nan, -0.2]], {}, "sum to nan"),
        ([[0, 1], [2, 3]], [[-1.0, -2.0]], {}, r"\(2, 2\) and \(1, 2\)"),
        ([0, 1], [-1.0, -2.0], {}, r"must both be \[tokens, k\]"),
        ([[0, 1]], [[-1.0, -2.0]], {"sampled": True}, "one a position, got 2"),
        ([[0, 1], [2, 3]], [[-1.0, -2.0]] * 2, {}, r"must be \[2, vocab\]"),
    ],
)
def test_scored_tokens_that_cannot_be_are_value_errors(
    ids: list, logprobs: list, more: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        scored_reverse_kl(torch.zeros(1, 5), ScoredTokens(torch.tensor(ids), torch.tensor(logprobs), **more))
