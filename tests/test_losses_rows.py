"""Rows that are no distribution, and columns that only pad the student's head: on every path, for every kind of teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_given import DIVERGENCES, seeded  # noqa: F401
from torch import Tensor

from stillroom.losses import (
    ScoredTokens,
    SparseTargets,
    TeacherHead,
    alpha_beta,
    forward_kl,
    fused_linear_divergence,
    jensen_shannon,
    reduce,
    renormalised_kl,
    reverse_kl,
    scored_reverse_kl,
    scored_skew_reverse_kl,
    skew_kl,
    skew_reverse_kl,
    sparse_forward_kl,
    taid,
    total_variation,
    uld_loss,
)

DENSE = DIVERGENCES | {
    "alpha_beta at beta 0": partial(alpha_beta, alpha=0.6, beta=0.0),
    "alpha_beta at alpha 0": partial(alpha_beta, alpha=0.0, beta=0.6),
    "taid": partial(taid, t=0.5),
    "uld_loss": uld_loss,
}
NO_DISTRIBUTION = {
    "nan": lambda row: row.index_fill(0, torch.tensor([1]), math.nan),
    "plus infinity": lambda row: row.index_fill(0, torch.tensor([2]), math.inf),
    "minus infinity throughout": lambda row: torch.full_like(row, -math.inf),
    "nan throughout": lambda row: torch.full_like(row, math.nan),
}
faults = st.lists(st.sampled_from([None, None, *NO_DISTRIBUTION]), min_size=1, max_size=6)


def with_faults(logits: Tensor, which: list[str | None]) -> Tensor:
    rows = [
        row if name is None else NO_DISTRIBUTION[name](row) for row, name in zip(logits, which, strict=True)
    ]
    return torch.stack(rows)


def pair(tokens: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, vocab, generator=g) * 2, torch.randn(tokens, vocab, generator=g) * 2


# Rows that are no distribution.


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("side", ["student", "teacher"])
@given(which=faults, t=st.sampled_from([0.5, 1.0, 4.0]), seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_a_row_that_is_no_distribution_costs_infinity_has_no_gradient_and_leaves_the_others_alone(
    name: str, side: str, which: list[str | None], t: float, seed: int
) -> None:
    student, teacher = pair(len(which), 5, seed)
    counts = torch.tensor([fault is None for fault in which])
    clean = student[counts].clone().requires_grad_()
    want = DENSE[name](clean, teacher[counts], temperature=t)
    broken = [
        with_faults(x, which) if side == who else x for who, x in (("student", student), ("teacher", teacher))
    ]
    leaf = broken[0].requires_grad_()
    values = DENSE[name](leaf, broken[1], temperature=t)
    assert (values[~counts] == math.inf).all()
    torch.testing.assert_close(values[counts], want)
    (everywhere,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
    (selected,) = torch.autograd.grad(reduce(values, counts, 1), leaf)
    for gradient in (everywhere, selected):
        assert (gradient[~counts] == 0).all()
        torch.testing.assert_close(
            gradient[counts], torch.autograd.grad(want.sum(), clean, retain_graph=True)[0]
        )


@pytest.mark.parametrize("name", [n for n in DENSE if n != "uld_loss"])
@pytest.mark.parametrize("fault", NO_DISTRIBUTION)
@pytest.mark.parametrize("kind", ["logits", "head"])
def test_the_fused_loss_refuses_a_teacher_without_a_distribution_unless_the_position_does_not_count(
    name: str, fault: str, kind: str
) -> None:
    hidden, weight = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    _, logits = pair(6, 5)
    broken = with_faults(logits, [None, None, None, fault, None, None])
    # A head of the identity has its hidden states as logits, but turns one infinity or NaN into NaN throughout.
    teacher = TeacherHead(broken, torch.eye(5)) if kind == "head" else broken
    run = partial(fused_linear_divergence, hidden, weight, divergence=DENSE[name], chunk_tokens=2)
    with pytest.raises(ValueError, match="teacher's logits at position 3 are no distribution"):
        run(teacher)
    weights = torch.tensor([1.0, 1, 1, 0, 1, 1])
    found = [run(given, weights=weights).loss for given in (teacher, logits)]
    got, want = ([loss, *torch.autograd.grad(loss, (hidden, weight))] for loss in found)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [n for n in DENSE if n != "uld_loss"])
def test_a_teacher_that_allows_only_columns_that_the_student_lacks_has_no_distribution(name: str) -> None:
    logits = torch.full((2, 6), -math.inf)
    logits[:, 0], logits[1, 0], logits[1, 5] = 0.0, -math.inf, 0.0
    with pytest.raises(ValueError, match="position 1 are no distribution"):
        fused_linear_divergence(torch.randn(2, 3), torch.randn(5, 3), logits, divergence=DENSE[name])
    assert DENSE[name](torch.randn(2, 5), logits).isinf().tolist() == [False, True]


def test_what_the_student_forbids_and_the_teacher_hardly_allows_leaves_no_nan() -> None:
    student, teacher = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[0.0, -300.0, 1.0]])
    for loss in (forward_kl, jensen_shannon, skew_kl, total_variation):
        leaf = student.clone().requires_grad_()
        values = loss(leaf, teacher)
        torch.testing.assert_close(values, torch.zeros(1))
        assert torch.autograd.grad(values.sum(), leaf)[0].isfinite().all()
    bias = torch.tensor([0.0, -math.inf, 0.0])
    hidden = torch.eye(3)[:1].clone().requires_grad_()
    fused = fused_linear_divergence(
        hidden, torch.tensor([[0.0], [0], [1]]).expand(3, 3), teacher, student_bias=bias
    )
    torch.testing.assert_close(fused.values, torch.zeros(1))
    assert torch.autograd.grad(fused.loss, hidden)[0].isfinite().all()


def kinds(tokens: int, seed: int) -> dict[str, tuple[Any, Callable[..., Tensor], str]]:
    """Targets of a few tokens over 7, the loss that they serve and its name."""
    z = pair(tokens, 7, seed)[1]
    p, ids = z.softmax(-1).topk(3)
    offsets, none = torch.arange(tokens + 1) * 3, torch.zeros(tokens)
    sparse = partial(SparseTargets, ids.flatten(), p.flatten(), offsets)
    return {
        "draws": (sparse(none, none), sparse_forward_kl, "forward_kl"),
        "bucket": (sparse(1 - p.sum(-1), none, bucket=True), sparse_forward_kl, "forward_kl"),
        "renormalised": (SparseTargets.renormalised_top_k(ids, p.log()), renormalised_kl, "renormalised_kl"),
        "scored": (ScoredTokens(ids, p.log()), scored_reverse_kl, "reverse_kl"),
        "scored, skew": (ScoredTokens(ids, p.log()), scored_skew_reverse_kl, "skew_reverse_kl"),
        "sampled": (ScoredTokens(ids[:, :1], p.log()[:, :1], True), scored_reverse_kl, "reverse_kl"),
    }


every_kind = pytest.mark.parametrize("kind", kinds(1, 0))


@every_kind
@given(which=faults, seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_a_students_row_without_a_distribution_reaches_nothing_else_for_targets_of_a_few_tokens(
    kind: str, which: list[str | None], seed: int
) -> None:
    targets, loss, _ = kinds(len(which), seed)[kind]
    student, counts = pair(len(which), 7, seed)[0], torch.tensor([fault is None for fault in which])
    want = loss(clean := student.clone().requires_grad_(), targets)
    values = loss(leaf := with_faults(student, which).requires_grad_(), targets)
    assert (values[~counts] == math.inf).all()
    torch.testing.assert_close(values[counts], want[counts])
    (got,) = torch.autograd.grad(values.sum(), leaf)
    assert (got[~counts] == 0).all()
    torch.testing.assert_close(got[counts], torch.autograd.grad(want.sum(), clean)[0][counts])


@every_kind
def test_the_fused_loss_reads_nothing_of_what_a_teacher_says_where_it_does_not_count(kind: str) -> None:
    targets, _, name = kinds(6, 1)[kind]
    hidden, weight = torch.randn(6, 3), torch.randn(7, 3, requires_grad=True)
    weights = torch.tensor([1.0, 0, 1, 0, 1, 1])
    run = partial(fused_linear_divergence, student_weight=weight, divergence=name, chunk_tokens=4)
    want = run(student_hidden=hidden, teacher=targets, weights=weights).loss
    off = weights == 0
    if isinstance(targets, SparseTargets):
        entries = off[targets.positions]
        changes = {
            "ids": targets.ids.masked_fill(entries, -1),
            "weights": targets.weights.masked_fill(entries, math.nan),
            "entropy": targets.entropy.masked_fill(off, math.inf),
        }
    else:
        changes = {
            "ids": targets.ids.masked_fill(off[:, None], 99),
            "teacher_logprobs": targets.teacher_logprobs.masked_fill(off[:, None], math.nan),
        }
    broken = type(targets)(**{**vars(targets), **changes})
    states = hidden.masked_fill(off[:, None], math.nan)
    got = run(student_hidden=states, teacher=broken, weights=weights).loss
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, weight)[0] for x in (got, want)))
    with pytest.raises(ValueError, match="token ids"):
        run(student_hidden=hidden, teacher=broken)


@pytest.mark.parametrize("field", ["weights", "tail_mass", "entropy"])
def test_sparse_targets_that_hold_nan_where_they_count_are_refused(field: str) -> None:
    targets = kinds(4, 2)["bucket"][0]
    broken = SparseTargets(**{**vars(targets), field: getattr(targets, field).clone().fill_(math.nan)})
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        sparse_forward_kl(torch.randn(4, 7), broken)


@pytest.mark.parametrize("name", ["forward_kl", "skew_kl"])
def test_the_fused_value_is_infinite_and_not_nan_where_the_students_own_states_are_broken(name: str) -> None:
    hidden = torch.randn(3, 2)
    hidden[1, 0] = math.nan
    fused = fused_linear_divergence(hidden, torch.randn(5, 2), torch.randn(3, 5), divergence=name)
    assert fused.values.isinf().tolist() == [False, True, False]
    assert fused.loss == math.inf


@every_kind
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_it_is_so_for_targets_of_a_few_tokens_too(kind: str, fault: float) -> None:
    targets, _, name = kinds(3, 4)[kind]
    hidden = torch.randn(3, 2).abs()
    hidden[1] = fault
    fused = fused_linear_divergence(hidden, torch.rand(7, 2), targets, divergence=name)
    assert fused.values.isinf().tolist() == [False, True, False]


def test_forbidding_what_the_teacher_says_costs_infinity_dense_and_fused() -> None:
    bias = torch.tensor([0.0, -math.inf, 0.0])
    hidden, weight, teacher = torch.randn(2, 2), torch.randn(3, 2), torch.randn(2, 3)
    assert (forward_kl(hidden @ weight.T + bias, teacher) == math.inf).all()
    fused = fused_linear_divergence(hidden, weight.requires_grad_(), teacher, student_bias=bias)
    assert (fused.values == math.inf).all()


# Columns that only pad the student's head.

NARROW, WIDE = 7, 10


def padded(tokens: int = 5, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A student's logits over 10 columns and its teacher's over 7, in float64."""
    student = pair(tokens, WIDE, seed)[0].double().requires_grad_()
    return student, pair(tokens, NARROW, seed + 1)[1].double()


def kept(teacher: Tensor, k: int, t: float) -> SparseTargets:
    p = (teacher / t).softmax(-1)
    top, ids = p.topk(k)
    tail = 1 - top.sum(-1) if k < teacher.shape[1] else torch.zeros(len(p)).double()
    entropy = torch.special.entr(top).sum(-1) + torch.special.entr(tail)
    offsets = torch.arange(len(p) + 1) * k
    return SparseTargets(
        ids.flatten(), top.flatten(), offsets, tail, entropy, bucket=True, temperature=t, vocab=NARROW
    )


def scored(student: Tensor, teacher: Tensor, k: int, t: float) -> ScoredTokens:
    ids = student.detach()[:, :NARROW].topk(k).indices
    return ScoredTokens(ids, (teacher / t).log_softmax(-1).gather(1, ids), temperature=t, vocab=NARROW)


def coarse(logits: Tensor, ids: Tensor, t: float, padding: bool) -> Tensor:
    """Logits at T = 1 of the distribution over these tokens, all others, and (if there are any) padding columns."""
    p = (logits / t).softmax(-1)
    some = p.gather(1, ids)
    rest = p[:, :NARROW].sum(-1, keepdim=True) - some.sum(-1, keepdim=True)
    return torch.cat([some, rest, *([p[:, NARROW:].sum(-1, keepdim=True)] if padding else [])], 1).log()


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_padding_is_no_part_of_a_bucket_whose_vocabulary_is_known(t: float) -> None:
    student, teacher = padded()
    targets = kept(teacher, 3, t)
    got = sparse_forward_kl(student, targets, t)
    ids = targets.ids.view(5, 3)
    want = t * t * forward_kl(coarse(student, ids, t, True), coarse(teacher, ids, t, False))
    torch.testing.assert_close(got, want)
    assert (got <= forward_kl(student, teacher, t) + 1e-9).all()
    gradient, expected = (torch.autograd.grad(v.sum(), student, retain_graph=True)[0] for v in (got, want))
    torch.testing.assert_close(gradient, expected)
    assert (gradient[:, NARROW:] > 0).all()  # pushed down
    assert torch.autograd.gradcheck(lambda x: sparse_forward_kl(x, targets, t), student)


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_a_bucket_of_every_token_the_teacher_knows_is_the_dense_loss_of_a_padded_head(t: float) -> None:
    student, teacher = padded()
    got, want = sparse_forward_kl(student, kept(teacher, NARROW, t), t), forward_kl(student, teacher, t)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in (got, want)))


def test_a_student_right_on_every_token_and_sure_of_its_padding_is_not_at_the_minimum() -> None:
    teacher = torch.randn(1, NARROW)
    student = torch.cat([teacher, torch.full((1, WIDE - NARROW), 9.0)], 1).requires_grad_()
    values = sparse_forward_kl(student, kept(teacher.double(), 3, 1.0))
    torch.testing.assert_close(values, forward_kl(student, teacher))
    assert values > 3


REVERSE = [
    pytest.param(scored_reverse_kl, reverse_kl, id="reverse"),
    pytest.param(scored_skew_reverse_kl, skew_reverse_kl, id="skew"),
]


@pytest.mark.parametrize(("loss", "dense"), REVERSE)
@pytest.mark.parametrize("k", [1, 4, NARROW])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_padding_is_no_part_of_the_bucket_of_scored_tokens_whose_vocabulary_is_known(
    loss: Callable[..., Tensor], dense: Callable[..., Tensor], k: int, t: float
) -> None:
    student, teacher = padded()
    targets = scored(student, teacher, k, t)
    got = loss(student, targets, t)
    want = dense(student, teacher, t)
    if k < NARROW:
        want = t * t * dense(coarse(student, targets.ids, t, True), coarse(teacher, targets.ids, t, False))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    gradient, expected = (torch.autograd.grad(v.sum(), student, retain_graph=True)[0] for v in (got, want))
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, t), student)


@pytest.mark.parametrize(("loss", "dense"), REVERSE)
def test_a_sample_from_a_padded_head_is_unbiased(
    loss: Callable[..., Tensor], dense: Callable[..., Tensor]
) -> None:
    """By enumeration, of draws within the vocabulary for reverse KL and from the whole head for its skew form."""
    student, teacher = padded(1)
    want = dense(student, teacher)
    columns = NARROW if dense is reverse_kl else WIDE
    q = student.detach()[0, :columns].softmax(-1)
    logprobs = torch.nn.functional.pad(teacher.log_softmax(-1), (0, WIDE - NARROW), value=-math.inf)
    rows = student.detach().expand(columns, -1).clone().requires_grad_()
    ids = torch.arange(columns)[:, None]
    values = loss(rows, ScoredTokens(ids, logprobs[0, :columns, None], sampled=True, vocab=NARROW))
    torch.testing.assert_close(q @ values.detach(), want.detach()[0])
    torch.testing.assert_close(
        q @ torch.autograd.grad(values.sum(), rows)[0], torch.autograd.grad(want.sum(), student)[0][0]
    )


@pytest.mark.parametrize("kind", ["bucket", "scored"])
def test_the_fused_loss_knows_padding_from_the_bucket_too(kind: str) -> None:
    hidden = torch.randn(5, 4).double().requires_grad_()
    weight = torch.randn(WIDE, 4).double().requires_grad_()
    teacher, logits = padded()[1], hidden @ weight.T
    targets: Any = kept(teacher, 3, 2.0) if kind == "bucket" else scored(logits, teacher, 3, 2.0)
    loss = sparse_forward_kl if kind == "bucket" else scored_skew_reverse_kl
    want = loss(logits, targets, 2.0).mean()
    divergence = "forward_kl" if kind == "bucket" else "skew_reverse_kl"
    got = fused_linear_divergence(
        hidden, weight, targets, divergence=divergence, temperature=2.0, chunk_tokens=2
    ).loss
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_vocabulary_stays_with_its_targets_and_is_not_mixed_with_another() -> None:
    student, teacher = padded()
    for targets in (kept(teacher, 3, 1.0), scored(student, teacher, 3, 1.0)):
        parts = targets.split(2)
        assert {part.vocab for part in [*parts, targets.select(slice(1, 3)), targets.to("cpu")]} == {NARROW}
        assert type(targets).cat(parts).vocab == NARROW
        other = type(targets)(**{**vars(targets), "vocab": None})
        with pytest.raises(ValueError, match="cannot be joined"):
            type(targets).cat([targets, other])
        with pytest.raises(ValueError, match="vocab must be at least 1"):
            type(targets)(**{**vars(targets), "vocab": 0})


def test_ids_beyond_the_targets_own_vocabulary_are_refused() -> None:
    none, offsets = torch.zeros(1), torch.tensor([0, 1])
    targets = SparseTargets(torch.tensor([7]), torch.ones(1), offsets, none, none, vocab=NARROW)
    with pytest.raises(ValueError, match="token ids 7 to 7, but there are 7 columns"):
        sparse_forward_kl(torch.zeros(1, WIDE), targets)
    said = ScoredTokens(torch.tensor([[2, 8]]), torch.tensor([[-1.0, -2.0]]), vocab=NARROW)
    with pytest.raises(ValueError, match="beyond the teacher's vocabulary of 7"):
        scored_reverse_kl(torch.zeros(1, WIDE), said)
    forbidden = ScoredTokens(said.ids, torch.tensor([[-1.0, -math.inf]]), vocab=NARROW)
    assert scored_reverse_kl(torch.zeros(1, WIDE), forbidden).isfinite().all()


# The temperature of scored tokens.


def scored_in_numpy(logits: np.ndarray, ids: np.ndarray, log_p: np.ndarray, t: float, alpha: float) -> float:
    """T^2 KL(q || alpha q + (1 - alpha) p) of one position over scored tokens and bucket, written out in float64."""
    q = np.exp(logits / t - (logits / t).max())
    q /= q.sum()
    b = np.append(q[ids], q.sum() - q[ids].sum())
    a = np.append(np.exp(log_p), 1 - np.exp(log_p).sum())
    return float(t * t * (b * np.log(b / (alpha * b + (1 - alpha) * a))).sum())


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_t_squared_is_in_value_and_gradient_of_scored_losses(
    alpha: float, t: float, dtype: torch.dtype
) -> None:
    """Against a reference in numpy, its gradient by central differences."""
    student, teacher = (x.double() for x in pair(3, 6, seed=5))
    ids = student.topk(3).indices
    log_p = (teacher / t).log_softmax(-1).gather(1, ids)
    leaf = student.to(dtype, copy=True).requires_grad_()
    values = scored_skew_reverse_kl(leaf, ScoredTokens(ids, log_p, temperature=t), t, alpha)
    (got,) = torch.autograd.grad(values.sum(), leaf)
    step = 1e-5
    for i in range(3):
        x = student[i].numpy()
        known = (ids[i].numpy(), log_p[i].numpy(), t, alpha)
        assert float(values[i].detach()) == pytest.approx(scored_in_numpy(x, *known), rel=2e-5, abs=1e-6)
        for j, move in enumerate(np.eye(6) * step):
            slope = (scored_in_numpy(x + move, *known) - scored_in_numpy(x - move, *known)) / (2 * step)
            assert float(got[i, j]) == pytest.approx(slope, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("t", [0.5, 4.0])
def test_t_squared_is_in_value_and_gradient_of_a_sample(t: float) -> None:
    """The value is T^2 log(q / p), its gradient T^2 log(q / p) times that of log q, which has 1 / T by itself."""
    student, teacher = (x.double() for x in pair(4, 6, seed=6))
    ids = torch.tensor([[0], [3], [5], [2]])
    log_p = (teacher / t).log_softmax(-1).gather(1, ids)
    leaf = student.requires_grad_()
    values = scored_reverse_kl(leaf, ScoredTokens(ids, log_p, sampled=True, temperature=t), t)
    (got,) = torch.autograd.grad(values.sum(), leaf)
    for i in range(4):
        x = student[i].detach().numpy() / t
        q = np.exp(x) / np.exp(x).sum()
        ratio = math.log(q[int(ids[i])]) - float(log_p[i])
        assert float(values[i].detach()) == pytest.approx(t * t * ratio)
        np.testing.assert_allclose(got[i].numpy(), t * ratio * (np.eye(6)[int(ids[i])] - q), atol=1e-12)
