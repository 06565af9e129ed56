"""Losses against references written in numpy float64, and the equalities that hold between their paths."""

from __future__ import annotations

import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_given import DIVERGENCES, distance, seeded  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.losses import (
    ScoredTokens,
    SparseTargets,
    TeacherHead,
    forward_kl,
    fused_linear_divergence,
    jensen_shannon,
    reduce,
    reverse_kl,
    skew_kl,
    sparse_forward_kl,
    token_weights,
)

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


# References: plain loops over tokens in numpy float64, from the definitions.


def softmax64(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def kl64(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0))


def reference(
    name: str, student: Tensor, teacher: Tensor, t: float, beta: float = 0.5, alpha: float = 0.1
) -> Tensor:
    out = []
    for s, z in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        q, p = softmax64(s / t), softmax64(z / t)
        value = {
            "forward_kl": lambda p=p, q=q: kl64(p, q),
            "reverse_kl": lambda p=p, q=q: kl64(q, p),
            "jensen_shannon": lambda p=p, q=q: (
                beta * kl64(p, beta * p + (1 - beta) * q) + (1 - beta) * kl64(q, beta * p + (1 - beta) * q)
            ),
            "skew_kl": lambda p=p, q=q: kl64(p, alpha * p + (1 - alpha) * q),
            "skew_reverse_kl": lambda p=p, q=q: kl64(q, alpha * q + (1 - alpha) * p),
            "alpha_beta": lambda p=p, q=q: 2 * float(((np.sqrt(p) - np.sqrt(q)) ** 2).sum()),
            "total_variation": lambda p=p, q=q: 0.5 * float(np.abs(p - q).sum()),
        }[name]()
        out.append(t * t * value)
    return torch.tensor(out, dtype=torch.float64)


def all_kept(teacher_logits: Tensor, t: float = 1.0) -> SparseTargets:
    """The whole distribution, written as sparse targets."""
    tokens, vocab = teacher_logits.shape
    p = (teacher_logits.double() / t).softmax(-1)
    return SparseTargets(
        ids=torch.arange(vocab).repeat(tokens),
        weights=p.flatten().float(),
        offsets=torch.arange(tokens + 1) * vocab,
        tail_mass=torch.zeros(tokens),
        entropy=torch.special.entr(p).sum(-1).float(),
        temperature=t,
    )


def top_k(teacher_logits: Tensor, k: int) -> SparseTargets:
    tokens = teacher_logits.shape[0]
    p, ids = teacher_logits.double().softmax(-1).topk(k)
    tail = (1 - p.sum(-1)).clamp(min=0)
    entropy = torch.special.entr(p).sum(-1) + torch.special.entr(tail)
    return SparseTargets(
        ids.flatten(),
        p.flatten().float(),
        torch.arange(tokens + 1) * k,
        tail.float(),
        entropy.float(),
        bucket=True,
    )


@every_divergence
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_divergence_agrees_with_float64_reference(name: str, t: float) -> None:
    student, teacher = torch.randn(7, 33) * 3, torch.randn(7, 33) * 3
    got = DIVERGENCES[name](student, teacher, temperature=t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), reference(name, student, teacher, t), rtol=1e-5, atol=1e-6)


@every_divergence
def test_gradient_of_divergence_passes_gradcheck(name: str) -> None:
    student = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        partial(DIVERGENCES[name], teacher_logits=teacher, temperature=1.7), student
    )


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_jensen_shannon_weighs_by_beta_and_ends_in_forward_and_reverse(beta: float) -> None:
    student, teacher = torch.randn(5, 20).double(), torch.randn(5, 20).double()
    want = reference("jensen_shannon", student, teacher, 2.0, beta=beta)
    torch.testing.assert_close(jensen_shannon(student, teacher, 2.0, beta), want)
    assert jensen_shannon(student, teacher, 2.0, 0.0).equal(forward_kl(student, teacher, 2.0))
    assert jensen_shannon(student, teacher, 2.0, 1.0).equal(reverse_kl(student, teacher, 2.0))
    near = jensen_shannon(student, teacher, 1.0, 1e-7) / 1e-7
    torch.testing.assert_close(near, forward_kl(student, teacher), rtol=1e-4, atol=1e-4)


def test_skew_kl_without_skew_is_forward_kl() -> None:
    student, teacher = torch.randn(5, 20), torch.randn(5, 20)
    assert skew_kl(student, teacher, alpha=0.0).equal(forward_kl(student, teacher))
    want = reference("skew_kl", student, teacher, 1.0, alpha=0.4)
    torch.testing.assert_close(skew_kl(student, teacher, alpha=0.4).double(), want, rtol=1e-5, atol=1e-6)


@every_divergence
def test_divergence_of_equal_distributions_is_zero_and_pulls_nowhere(name: str) -> None:
    teacher = torch.randn(4, 50) * 5
    student = (teacher + 3.0).requires_grad_()  # a shift of all logits is the same distribution
    values = DIVERGENCES[name](student, teacher, temperature=2.0)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(4), rtol=0, atol=1e-5)
    if name != "total_variation":  # which has a kink there
        torch.testing.assert_close(student.grad, torch.zeros(4, 50), rtol=0, atol=1e-5)


@every_divergence
def test_t_squared_is_in_value_and_gradient(name: str) -> None:
    teacher, t = torch.randn(4, 9).double(), 3.0
    plain = torch.randn(4, 9).double().requires_grad_()
    hot = (plain.detach() * t).requires_grad_()
    cold_values = DIVERGENCES[name](plain, teacher)
    hot_values = DIVERGENCES[name](hot, teacher * t, temperature=t)
    cold_values.sum().backward()
    hot_values.sum().backward()
    torch.testing.assert_close(hot_values, t**2 * cold_values)
    torch.testing.assert_close(hot.grad, t * plain.grad)  # T squared, and 1/T from the chain rule


@every_divergence
def test_tokens_the_teacher_forbids_leave_no_nan(name: str) -> None:
    student, teacher = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    teacher[:, 2:5] = -math.inf
    values = DIVERGENCES[name](student, teacher)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@every_divergence
def test_padding_columns_get_none_of_the_teachers_mass(name: str) -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    divergence = DIVERGENCES[name]
    wider_teacher = torch.cat([teacher, torch.randn(4, 3)], -1)
    torch.testing.assert_close(divergence(student, wider_teacher), divergence(student, teacher))
    wider_student = torch.cat([student, torch.randn(4, 3)], -1).requires_grad_()
    forbidden = torch.cat([teacher, torch.full((4, 3), -math.inf)], -1)
    values = divergence(wider_student, teacher)
    torch.testing.assert_close(values, divergence(wider_student, forbidden))
    values.sum().backward()
    assert (wider_student.grad[:, 10:] >= 0).all()  # never pulled up


def test_forward_kl_pushes_the_students_padding_down() -> None:
    student = torch.zeros(1, 6, requires_grad=True)
    forward_kl(student, torch.zeros(1, 4)).sum().backward()
    torch.testing.assert_close(student.grad[0, 4:], torch.full((2,), 1 / 6))


@given(
    vocab=st.integers(2, 40),
    scale=st.sampled_from([1e-6, 1.0, 50.0, 1e4, 1e30]),
    t=st.sampled_from([0.1, 1.0, 20.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_divergences_stay_finite_and_non_negative_for_extreme_logits(
    vocab: int, scale: float, t: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(3, vocab, generator=g) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(3, vocab, generator=g) * scale).to(dtype)
    for divergence in DIVERGENCES.values():
        student.grad = None
        values = divergence(student, teacher, temperature=t)
        values.sum().backward()
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= -1e-5 * max(1.0, t * t)).all()
        assert student.grad.isfinite().all()


def test_bad_arguments_are_value_errors() -> None:
    x = torch.zeros(2, 4)
    for call in (
        lambda: forward_kl(x, x, temperature=0.0),
        lambda: forward_kl(x, torch.zeros(3, 4)),
        lambda: jensen_shannon(x, x, beta=1.5),
        lambda: skew_kl(x, x, alpha=1.0),
    ):
        with pytest.raises(ValueError, match=r".+"):
            call()


# Sparse targets.


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_sparse_with_every_token_kept_equals_dense(t: float) -> None:
    student, teacher = torch.randn(6, 30, requires_grad=True), torch.randn(6, 30)
    dense = forward_kl(student, teacher, t)
    (want,) = torch.autograd.grad(dense.sum(), student)
    sparse = sparse_forward_kl(student, all_kept(teacher, t), t)
    (got,) = torch.autograd.grad(sparse.sum(), student)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def ragged(g: torch.Generator, tokens: int, vocab: int, bucket: bool) -> SparseTargets:
    counts = torch.randint(0 if bucket else 1, vocab, (tokens,), generator=g)
    counts[0] = vocab - 1
    ids = torch.cat([torch.randperm(vocab, generator=g)[:n] for n in counts])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    weights = torch.rand(int(counts.sum()), generator=g)  # need not sum to one
    tail = torch.rand(tokens, generator=g) if bucket else torch.zeros(tokens)
    return SparseTargets(
        ids, weights, offsets, tail, torch.rand(tokens, generator=g), bucket, temperature=1.3
    )


@pytest.mark.parametrize("bucket", [False, True])
def test_gradient_of_sparse_forward_kl_passes_gradcheck_for_any_weights(bucket: bool) -> None:
    targets = ragged(torch.Generator().manual_seed(0), 5, 7, bucket)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sparse_forward_kl(x, targets, 1.3), student)


def test_bucket_is_the_kl_of_the_coarse_distributions() -> None:
    student, teacher = torch.randn(6, 12).double(), torch.randn(6, 12).double()
    targets = top_k(teacher, 4)
    p, q = teacher.softmax(-1), student.softmax(-1)
    want = []
    for i in range(6):
        ids = targets.ids[4 * i : 4 * i + 4]
        a = [*p[i, ids].tolist(), 1 - float(p[i, ids].sum())]
        b = [*q[i, ids].tolist(), 1 - float(q[i, ids].sum())]
        want.append(kl64(np.array(a), np.array(b)))
    got = sparse_forward_kl(student, targets)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert (got <= forward_kl(student, teacher) + 1e-6).all()
    torch.testing.assert_close(
        sparse_forward_kl(teacher, targets), torch.zeros(6).double(), rtol=0, atol=1e-6
    )


def test_bucket_pulls_the_rest_of_the_vocabulary_down() -> None:
    """A student too sure of tokens that the teacher's top-k left out is corrected."""
    teacher = torch.tensor([[8.0, 0, 0, 0, 0, 0]])
    student = torch.tensor([[8.0, 0, 9.0, 0, 0, 0]], requires_grad=True)
    sparse_forward_kl(student, top_k(teacher, 2)).sum().backward()
    assert student.grad[0, 2] > 0.5


def test_bucket_with_the_whole_vocabulary_kept_is_finite() -> None:
    student = torch.randn(2, 4, requires_grad=True)
    targets = top_k(torch.randn(2, 4), 4)
    values = sparse_forward_kl(student, SparseTargets(**{**vars(targets), "tail_mass": torch.zeros(2)}))
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad.isfinite().all()


def test_sparse_targets_of_another_temperature_or_vocabulary_are_refused() -> None:
    targets = all_kept(torch.randn(2, 9), 2.0)
    with pytest.raises(ValueError, match=r"captured at temperature 2\.0, the loss asks for 1\.0"):
        sparse_forward_kl(torch.randn(2, 9), targets, 1.0)
    with pytest.raises(ValueError, match="token ids 0 to 8, but there are 5 columns"):
        sparse_forward_kl(torch.randn(2, 5), targets, 2.0)


@given(tokens=st.integers(1, 12), size=st.integers(1, 14), seed=st.integers(0, 10**6), bucket=st.booleans())
@settings(max_examples=40, deadline=None)
def test_sparse_targets_survive_splitting_selecting_and_joining(
    tokens: int, size: int, seed: int, bucket: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    targets = ragged(g, tokens, 9, bucket)
    dense = targets.to_dense(9)
    back = SparseTargets.cat(targets.split(size))
    assert back.to_dense(9).equal(dense)
    assert back.offsets.equal(targets.offsets)
    order = torch.randperm(tokens, generator=g)
    shuffled = targets.select(order)
    assert shuffled.to_dense(9).equal(dense[order])
    assert shuffled.entropy.equal(targets.entropy[order])
    mask = torch.rand(tokens, generator=g) > 0.5
    assert targets.select(mask).to_dense(9).equal(dense[mask])
    assert targets.select(slice(1, 4)).to_dense(9).equal(dense[1:4])


# Fused.


def problem(
    tokens: int = 11,
    vocab: int = 37,
    hidden: int = 8,
    rank: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "hidden": leaf(tokens, hidden),
        "weight": leaf(vocab, hidden),
        "bias": leaf(vocab),
        "a": leaf(rank, hidden),
        "b": leaf(vocab, rank),
        "teacher_hidden": torch.randn(tokens, 6, generator=g, dtype=torch.float64).to(dtype),
        "teacher_weight": torch.randn(vocab, 6, generator=g, dtype=torch.float64).to(dtype),
        "labels": torch.randint(0, vocab, (tokens,), generator=g),
        "weights": torch.rand(tokens, generator=g).double(),
    }


def plain_logits(p: dict[str, Tensor], scale: float = 0.7, cap: float | None = 5.0) -> Tensor:
    z = (p["hidden"] @ (p["weight"] + 0.5 * p["b"] @ p["a"]).T + p["bias"]) * scale
    return z if cap is None else cap * torch.tanh(z / cap)


PARAMETERS = ("hidden", "weight", "bias", "a", "b")


@every_divergence
@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 256])
@pytest.mark.parametrize("kind", ["head", "logits"])
def test_fused_equals_dense_for_any_chunk_length(name: str, chunk: int, kind: str) -> None:
    p, t = problem(), 2.0
    teacher_logits = p["teacher_hidden"] @ p["teacher_weight"].T
    logits = plain_logits(p)
    soft = DIVERGENCES[name](logits, teacher_logits, t)
    hard = torch.nn.functional.cross_entropy(logits, p["labels"], reduction="none")
    want = ((0.8 * soft + 0.3 * hard) * p["weights"]).sum()
    want_grads = torch.autograd.grad(want, [p[k] for k in PARAMETERS])
    fused = fused_linear_divergence(
        p["hidden"],
        p["weight"],
        TeacherHead(p["teacher_hidden"], p["teacher_weight"]) if kind == "head" else teacher_logits,
        weights=p["weights"],
        labels=p["labels"],
        hard=0.3,
        soft=0.8,
        divergence=name,
        temperature=t,
        student_bias=p["bias"],
        logit_scale=0.7,
        softcap=5.0,
        chunk_tokens=chunk,
        student_lora=(p["a"], p["b"], 0.5),
    )
    grads = torch.autograd.grad(3 * fused.loss, [p[k] for k in PARAMETERS])
    torch.testing.assert_close(fused.loss, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.soft_values, soft)
    torch.testing.assert_close(fused.hard_values, hard)
    torch.testing.assert_close(fused.values, (0.8 * soft + 0.3 * hard).detach())
    for got, expected in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, 3 * expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_fused_on_sparse_targets_equals_sparse_and_dense_with_every_token_kept(chunk: int) -> None:
    p, t = problem(dtype=torch.float32), 2.0
    teacher_logits = p["teacher_hidden"] @ p["teacher_weight"].T
    results = []
    for teacher in (
        TeacherHead(p["teacher_hidden"], p["teacher_weight"]),
        teacher_logits,
        all_kept(teacher_logits, t),
    ):
        fused = fused_linear_divergence(
            p["hidden"],
            p["weight"],
            teacher,
            temperature=t,
            student_bias=p["bias"],
            chunk_tokens=chunk,
            student_lora=(p["a"], p["b"], 0.5),
        )
        results.append((fused.loss, *torch.autograd.grad(fused.loss, [p[k] for k in PARAMETERS])))
    logits = plain_logits(p, scale=1.0, cap=None)
    unfused = sparse_forward_kl(logits, all_kept(teacher_logits, t), t).mean()
    results.append((unfused, *torch.autograd.grad(unfused, [p[k] for k in PARAMETERS])))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.detach().abs().max()))


def test_fused_passes_gradcheck_with_a_bucket_and_labels() -> None:
    p = problem(tokens=5, vocab=7, hidden=3, rank=2)
    targets = ragged(torch.Generator().manual_seed(3), 5, 7, bucket=True)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused_linear_divergence(
            hidden,
            weight,
            targets,
            weights=p["weights"],
            labels=p["labels"],
            hard=0.5,
            temperature=1.3,
            student_bias=bias,
            softcap=4.0,
            chunk_tokens=2,
            student_lora=(a, b, 2.0),
        ).loss

    assert torch.autograd.gradcheck(loss, [p[k] for k in PARAMETERS])


@every_divergence
def test_fused_t_squared_is_in_value_and_gradient(name: str) -> None:
    p, t = problem(), 4.0
    teacher = p["teacher_hidden"] @ p["teacher_weight"].T
    cold = fused_linear_divergence(p["hidden"], p["weight"], teacher, divergence=name)
    hot = fused_linear_divergence(
        p["hidden"], p["weight"], teacher * t, divergence=name, temperature=t, logit_scale=t
    )
    torch.testing.assert_close(hot.loss, t**2 * cold.loss)
    cold_grad, hot_grad = (torch.autograd.grad(f.loss, p["hidden"])[0] for f in (cold, hot))
    torch.testing.assert_close(hot_grad, t**2 * cold_grad)


def test_rows_of_weight_zero_never_reach_the_head() -> None:
    p = problem()
    weights = p["weights"].clone()
    weights[::2] = 0
    hidden = p["hidden"].detach().clone()
    hidden[::2] = math.nan
    hidden.requires_grad_()
    labels = p["labels"].clone()
    labels[::2] = -100
    teacher_logits = (p["teacher_hidden"] @ p["teacher_weight"].T).index_fill(
        0, torch.arange(0, 11, 2), math.nan
    )
    for teacher in (teacher_logits, all_kept(teacher_logits)):
        hidden.grad = p["weight"].grad = None
        fused = fused_linear_divergence(
            hidden, p["weight"], teacher, weights=weights, labels=labels, hard=1.0, chunk_tokens=2
        )
        fused.loss.backward()
        assert fused.loss.isfinite()
        assert p["weight"].grad.isfinite().all()
        assert (fused.values[::2] == 0).all()
        assert (hidden.grad[::2] == 0).all()
        assert (hidden.grad[1::2] != 0).any()


@pytest.mark.parametrize("tokens", [0, 6])
def test_a_fully_masked_batch_gives_zero_loss_and_zero_gradient(tokens: int) -> None:
    p = problem(tokens=tokens)
    mask = torch.zeros(tokens, dtype=torch.bool)
    weights = token_weights(mask, 0)
    for teacher in (
        TeacherHead(p["teacher_hidden"], p["teacher_weight"]),
        all_kept(torch.zeros(tokens, 37)),
    ):
        fused = fused_linear_divergence(
            p["hidden"], p["weight"], teacher, weights=weights, labels=p["labels"], hard=1.0
        )
        grads = torch.autograd.grad(fused.loss, (p["hidden"], p["weight"]))
        assert fused.loss == 0
        assert all((g == 0).all() for g in grads)
    values = torch.full((tokens,), math.nan, requires_grad=True)
    loss = reduce(values, mask, 0)
    loss.backward()
    assert loss == 0
    assert (values.grad == 0).all()


def test_a_frozen_head_gets_no_gradient_and_costs_no_buffer() -> None:
    p = problem()
    frozen = p["weight"].detach()
    fused = fused_linear_divergence(p["hidden"], frozen, p["teacher_hidden"] @ p["teacher_weight"].T)
    saved = [t for t in fused.loss.grad_fn.saved_tensors if t is not None]
    assert {tuple(t.shape) for t in saved} == {(), (11, 8)}
    fused.loss.backward()
    assert frozen.grad is None
    assert p["hidden"].grad is not None


def test_without_grad_mode_the_value_is_the_same_and_nothing_is_kept() -> None:
    p = problem()
    teacher = TeacherHead(p["teacher_hidden"], p["teacher_weight"])
    want = fused_linear_divergence(p["hidden"], p["weight"], teacher).loss
    with torch.no_grad():
        got = fused_linear_divergence(p["hidden"], p["weight"], teacher).loss
    assert not got.requires_grad
    torch.testing.assert_close(got, want)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def halves(dtype: torch.dtype, tokens: int, **sizes: int) -> tuple[list[Tensor], TeacherHead, list[Tensor]]:
    """Hidden states and weight in halves with their teacher, and the float64 gradients of the mean forward KL."""
    p = problem(tokens=tokens, dtype=dtype, **sizes)
    teacher = TeacherHead(p["teacher_hidden"], p["teacher_weight"])
    wide = [p[k].detach().double().requires_grad_() for k in ("hidden", "weight")]
    teacher_logits = teacher.hidden.double() @ teacher.weight.double().T
    value = forward_kl(wide[0] @ wide[1].T, teacher_logits).mean()
    return [p["hidden"], p["weight"]], teacher, [value.detach(), *torch.autograd.grad(value, wide)]


@HALVES
def test_gradients_of_halves_do_not_underflow_and_lose_nothing_to_many_chunks(dtype: torch.dtype) -> None:
    leaves, teacher, (value, *want) = halves(dtype, tokens=300)
    weights = torch.full((300,), 1e-6)  # far below what fp16 can hold as a gradient of logits
    got = fused_linear_divergence(*leaves, teacher, weights=weights, chunk_tokens=7)
    grads = torch.autograd.grad(got.loss * 65536, leaves)
    times = 300e-6
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss.double(), times * value, rtol=1e-3, atol=0)
    for g, w in zip(grads, want, strict=True):
        assert g.dtype == dtype
        w = 65536 * times * w
        torch.testing.assert_close(g.double(), w, rtol=1e-2, atol=1e-2 * float(w.abs().max()))


@HALVES
def test_halves_are_never_further_from_float64_than_a_dense_loop_in_halves(dtype: torch.dtype) -> None:
    leaves, teacher, (value, *want) = halves(dtype, tokens=128, vocab=2000, hidden=64)
    ours = fused_linear_divergence(*leaves, teacher, chunk_tokens=16)
    dense = forward_kl((leaves[0] @ leaves[1].T).float(), (teacher.hidden @ teacher.weight.T).float()).mean()
    assert distance(ours.loss, value) <= 1.02 * distance(dense, value) + 1e-6
    grads, theirs = (torch.autograd.grad(loss, leaves) for loss in (ours.loss, dense))
    for g, t, w in zip(grads, theirs, want, strict=True):
        assert distance(g, w) <= 1.02 * distance(t, w)


@HALVES
def test_hidden_states_in_fp32_buy_unrounded_logits_from_a_head_in_halves(dtype: torch.dtype) -> None:
    leaves, teacher, (value, *want) = halves(dtype, tokens=30)
    hidden = leaves[0].detach().float().requires_grad_()
    teacher = TeacherHead(teacher.hidden.float(), teacher.weight)
    got = fused_linear_divergence(hidden, leaves[1], teacher, chunk_tokens=7)
    grads = torch.autograd.grad(got.loss, (hidden, leaves[1]))
    torch.testing.assert_close(got.loss.double(), value, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads[0].double(), want[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grads[1], want[1].to(dtype), rtol=1e-2, atol=1e-6)


def test_equal_heads_in_halves_have_the_value_and_gradient_zero() -> None:
    leaves, _, _ = halves(torch.bfloat16, tokens=20)
    equal = fused_linear_divergence(*leaves, TeacherHead(leaves[0], leaves[1]), chunk_tokens=6)
    assert equal.loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(equal.loss, leaves))


@pytest.mark.parametrize("kind", ["head", "logits", "every token", "bucket", "scored"])
def test_rows_worked_on_a_few_at_a_time_give_what_all_at_once_give(kind: str) -> None:
    """With so large a vocabulary, chunks of 3 are cut again, for student and teacher apart."""
    p, vocab = problem(tokens=5, vocab=200_003, hidden=3), 200_003
    weights = p["weights"].clone()
    weights[1] = 0
    z = p["teacher_hidden"] @ p["teacher_weight"].T
    scored = kind == "scored"
    teacher = {
        "head": lambda: TeacherHead(p["teacher_hidden"], p["teacher_weight"]),
        "logits": lambda: z,
        "every token": lambda: all_kept(z),
        "bucket": lambda: top_k(z, 9),
        "scored": lambda: ScoredTokens(torch.arange(vocab).expand(5, -1), z.log_softmax(-1)),
    }[kind]()
    got = fused_linear_divergence(
        p["hidden"],
        p["weight"],
        teacher,
        weights=weights,
        labels=p["labels"],
        hard=0.4,
        divergence="reverse_kl" if scored else "forward_kl",
        student_bias=p["bias"],
        softcap=5.0,
        logit_scale=0.7,
        chunk_tokens=3,
        student_lora=(p["a"], p["b"], 0.5),
    )
    logits = plain_logits(p)
    soft = sparse_forward_kl(logits, top_k(z, 9)) if kind == "bucket" else None
    if soft is None:
        soft = (reverse_kl if scored else forward_kl)(logits, z)
    hard = torch.nn.functional.cross_entropy(logits, p["labels"], reduction="none")
    want = ((soft + 0.4 * hard) * weights).sum()
    torch.testing.assert_close(got.loss, want, rtol=1e-5, atol=1e-6)
    for g, w in zip(
        torch.autograd.grad(got.loss, [p[k] for k in PARAMETERS]),
        torch.autograd.grad(want, [p[k] for k in PARAMETERS]),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * float(w.abs().max()))


def test_backward_can_be_repeated_and_a_gradient_changed_between_is_not_taken_for_one() -> None:
    p = problem(dtype=torch.float32)
    fused = fused_linear_divergence(p["hidden"], p["weight"], torch.zeros(11, 37))
    for _ in range(2):
        fused.loss.backward(retain_graph=True)
        first = p["weight"].grad.clone()
        p["weight"].grad.zero_()
    assert (first != 0).any()
    (again,) = torch.autograd.grad(fused.loss, p["weight"], retain_graph=True)
    torch.testing.assert_close(again, first)
    again.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fused.loss.backward()


def test_fused_is_not_narrowed_by_autocast() -> None:
    p = problem(dtype=torch.float32)
    teacher = TeacherHead(p["teacher_hidden"], p["teacher_weight"])
    want = fused_linear_divergence(p["hidden"], p["weight"], teacher).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fused_linear_divergence(p["hidden"], p["weight"], teacher).loss
    assert got.equal(want)


@pytest.mark.parametrize("pad", [("student", 3), ("teacher", 3)])
def test_fused_handles_padded_vocabularies_as_dense_does(pad: tuple[str, int]) -> None:
    p = problem()
    side, columns = pad
    key = "weight" if side == "student" else "teacher_weight"
    p[key] = torch.cat([p[key].detach(), torch.randn(columns, p[key].shape[1]).double()]).requires_grad_()
    teacher = TeacherHead(p["teacher_hidden"], p["teacher_weight"])
    want = forward_kl(
        p["hidden"] @ p["weight"].T, (p["teacher_hidden"] @ p["teacher_weight"].T).detach()
    ).mean()
    want_grad = torch.autograd.grad(want, p["weight"])[0]
    got = fused_linear_divergence(p["hidden"], p["weight"], teacher).loss
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, p["weight"])[0], want_grad)


def test_the_teachers_own_softcap_and_scale_are_applied() -> None:
    p = problem()
    z = p["teacher_hidden"] @ p["teacher_weight"].T + 0.1
    teacher = TeacherHead(
        p["teacher_hidden"],
        p["teacher_weight"],
        torch.full((37,), 0.1).double(),
        logit_scale=0.3,
        softcap=2.0,
    )
    got = fused_linear_divergence(p["hidden"], p["weight"], teacher).values
    want = forward_kl(p["hidden"] @ p["weight"].T, 2 * torch.tanh(0.3 * z / 2))
    torch.testing.assert_close(got, want)


def test_labels_alone_need_no_teacher() -> None:
    p = problem()
    got = fused_linear_divergence(p["hidden"], p["weight"], None, labels=p["labels"], hard=1.0, soft=0.0)
    want = torch.nn.functional.cross_entropy(p["hidden"] @ p["weight"].T, p["labels"])
    torch.testing.assert_close(got.loss, want)
    assert (got.soft_values == 0).all()


def test_a_divergence_with_its_own_setting_can_be_passed_as_a_function() -> None:
    p = problem()
    teacher = p["teacher_hidden"] @ p["teacher_weight"].T
    got = fused_linear_divergence(
        p["hidden"], p["weight"], teacher, divergence=partial(jensen_shannon, beta=0.2)
    )
    want = jensen_shannon(p["hidden"] @ p["weight"].T, teacher, beta=0.2)
    torch.testing.assert_close(got.values, want)


def test_micro_batches_add_up_to_one_batch() -> None:
    p = problem()
    mask = torch.rand(11, generator=torch.Generator().manual_seed(1)) > 0.3
    count = int(mask.sum())
    teacher = p["teacher_hidden"] @ p["teacher_weight"].T
    whole = fused_linear_divergence(p["hidden"], p["weight"], teacher, weights=token_weights(mask, count))
    parts = [
        fused_linear_divergence(
            p["hidden"][s], p["weight"], teacher[s], weights=token_weights(mask[s], count)
        ).loss
        for s in (slice(0, 2), slice(2, 7), slice(7, 11))
    ]
    torch.testing.assert_close(sum(parts), whole.loss, rtol=1e-6, atol=1e-6)
    values = forward_kl(p["hidden"] @ p["weight"].T, teacher)
    torch.testing.assert_close(reduce(values, mask, count), values[mask].mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["head", "sparse"])
def test_padding_on_either_side_and_packing_change_neither_loss_nor_gradients(kind: str) -> None:
    p, results = problem(), []
    first, second, pad = list(range(4)), list(range(4, 11)), [-1] * 3
    for layout in (first + second, pad + first + second, first + pad + second, second + pad + first):
        places = torch.tensor(layout)
        mask, rows = places >= 0, places.clamp(min=0)
        states = p["teacher_hidden"][rows].masked_fill(~mask[:, None], math.nan)
        teacher: TeacherHead | SparseTargets = TeacherHead(states, p["teacher_weight"])
        if kind == "sparse":
            teacher = top_k(p["teacher_hidden"] @ p["teacher_weight"].T, 5).select(rows)
        loss = fused_linear_divergence(
            p["hidden"][rows].masked_fill(~mask[:, None], math.nan),
            p["weight"],
            teacher,
            weights=token_weights(mask, 11),
            labels=p["labels"][rows].masked_fill(~mask, -100),
            hard=0.5,
            chunk_tokens=4,
        ).loss
        results.append((loss.detach(), *torch.autograd.grad(loss, (p["hidden"], p["weight"]))))
    assert (results[0][1] != 0).any()
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "forward_kl"])
def test_divergences_that_are_not_linear_in_p_refuse_sparse_targets(name: str) -> None:
    p = problem()
    with pytest.raises(ValueError, match="linear in p"):
        fused_linear_divergence(p["hidden"], p["weight"], all_kept(torch.zeros(11, 37)), divergence=name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"divergence": "kl"},
        {"temperature": 0.0},
        {"chunk_tokens": 0},
        {"weights": torch.ones(3)},
        {"hard": 1.0},
        {"hard": 1.0, "labels": torch.full((11,), 37)},
        {"hard": 1.0, "labels": torch.zeros(4, dtype=torch.int64)},
        {"teacher": None},
        {"teacher": torch.zeros(3, 37)},
        {"teacher": all_kept(torch.zeros(3, 37))},
        {"teacher": all_kept(torch.zeros(11, 37), 2.0)},
        {"student_weight": torch.zeros(37, 5)},
    ],
)
def test_fused_refuses_what_does_not_fit(wrong: dict) -> None:
    p = problem()
    arguments = {"student_hidden": p["hidden"], "student_weight": p["weight"], "teacher": torch.zeros(11, 37)}
    with pytest.raises(ValueError, match=r".+"):
        fused_linear_divergence(**{**arguments, **wrong})


class Live(TorchDispatchMode):
    """The largest tensor made, in elements, and the most bytes of tensors alive at once."""

    largest = most = 0

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage.data_ptr(), (weakref.ref(tensor), storage.nbytes()))
        self.alive = {key: pair for key, pair in self.alive.items() if pair[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("kind", ["head", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pass_never_holds_more_than_two_chunks_of_logits(kind: str, dtype: torch.dtype) -> None:
    """Forwards or backwards, all that is computed on the way counted, gradients and inputs apart."""
    p = problem(tokens=260, vocab=32_768, hidden=4, dtype=dtype)
    teacher: TeacherHead | SparseTargets = TeacherHead(p["teacher_hidden"], p["teacher_weight"])
    if kind == "sparse":
        teacher = top_k((p["teacher_hidden"] @ p["teacher_weight"].T).float(), 8)
    chunk, gradient = 256, 4 * p["weight"].numel() * 2  # in fp32, and again for backward
    with Live() as seen:
        fused_linear_divergence(p["hidden"], p["weight"], teacher, chunk_tokens=chunk).loss.backward()
    assert seen.largest == chunk * 32_768
    assert chunk * 32_768 * 2 <= seen.most <= 2 * chunk * 32_768 * 4 + gradient
