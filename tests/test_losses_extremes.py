"""Any shapes, masks, dtypes and sizes of numbers: nothing gives NaN, nothing is broadcast, and values stay right."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_given import DIVERGENCES as PLAIN
from losses_given import distance, seeded  # noqa: F401
from torch import Tensor

from stillroom.losses import (
    Hint,
    Projections,
    ScoredTokens,
    SparseTargets,
    TeacherHead,
    alpha_beta,
    attention_loss,
    attention_maps,
    forward_kl,
    fused_linear_divergence,
    hidden_state_loss,
    patience_loss,
    reduce,
    relation_loss,
    scored_reverse_kl,
    scored_skew_reverse_kl,
    sparse_forward_kl,
    taid,
    token_weights,
    uld_loss,
)

DIVERGENCES = PLAIN | {"alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7), "taid": partial(taid, t=0.5)}


# Targets of a few tokens, against loops.


def ragged(g: torch.Generator, tokens: int, vocab: int, bucket: bool, t: float) -> SparseTargets:
    """Any number of different tokens a position, none and all included, with weights that need not sum to one."""
    counts = torch.randint(0, vocab + 1, (tokens,), generator=g)
    ids = [torch.randperm(vocab, generator=g)[:n] for n in counts]
    weights = torch.rand(int(counts.sum()), generator=g)
    return SparseTargets(
        torch.cat([torch.zeros(0, dtype=torch.int64), *ids]),
        weights.masked_fill(torch.rand(weights.shape, generator=g) < 0.2, 0),
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        torch.rand(tokens, generator=g) if bucket else torch.zeros(tokens),
        torch.rand(tokens, generator=g),
        bucket,
        t,
    )


def log_softmax(row: list[float], t: float) -> list[float]:
    top = max(row)
    total = math.log(math.fsum(math.exp((z - top) / t) for z in row))
    return [(z - top) / t - total for z in row]


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_sparse_forward_kl_agrees_with_a_loop_for_any_weights(bucket: bool, t: float) -> None:
    targets = ragged(torch.Generator().manual_seed(4), 9, 6, bucket, t)
    assert {0, 6} <= set(targets.counts.tolist())
    student = torch.randn(9, 6).double() * 3
    want = []
    for i, row in enumerate(student.tolist()):
        logs = log_softmax(row, t)
        entries = range(int(targets.offsets[i]), int(targets.offsets[i + 1]))
        kept = {int(targets.ids[e]): float(targets.weights[e]) for e in entries}
        value = -math.fsum(w * logs[k] for k, w in kept.items()) - float(targets.entropy[i])
        outside = math.fsum(math.exp(x) for k, x in enumerate(logs) if k not in kept)
        if outside:
            value -= float(targets.tail_mass[i]) * math.log(outside)
        want.append(t * t * value)
    got = sparse_forward_kl(student, targets, t)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_scored_losses_agree_with_a_loop_over_outcomes(alpha: float, forbidden: bool, k: int) -> None:
    student, teacher, t = torch.randn(5, 7).double() * 2, torch.randn(5, 7).double() * 2, 1.5
    if forbidden:
        teacher[:, [1, 4]] = -math.inf
    ids = torch.rand(5, 7).argsort(-1)[:, :k]
    targets = ScoredTokens(ids, (teacher / t).log_softmax(-1).gather(1, ids), temperature=t)
    want = []
    for i in range(5):
        q_all = [math.exp(x) for x in log_softmax(student[i].tolist(), t)]
        p = [math.exp(x) for x in targets.teacher_logprobs[i].tolist()]
        q = [q_all[j] for j in ids[i].tolist()]
        if k < 7:
            p, q = [*p, 1 - math.fsum(p)], [*q, math.fsum(q_all[j] for j in range(7) if j not in ids[i])]
        if alpha == 0:  # within the teacher's support
            allowed = [j for j, x in enumerate(p) if x > 1e-9]
            p, q = [p[j] for j in allowed], [q[j] / math.fsum(q[m] for m in allowed) for j in allowed]
        mixed = [alpha * b + (1 - alpha) * a for a, b in zip(p, q, strict=True)]
        want.append(t * t * math.fsum(b * math.log(b / m) for b, m in zip(q, mixed, strict=True)))
    got = scored_skew_reverse_kl(student, targets, t, alpha)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_sample_costs_nothing_where_student_and_teacher_agree() -> None:
    student = torch.randn(4, 9, requires_grad=True)
    ids = torch.randint(0, 9, (4, 1))
    targets = ScoredTokens(ids, student.detach().log_softmax(-1).gather(1, ids), sampled=True)
    values = scored_reverse_kl(student, targets)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros(4, 9), rtol=0, atol=1e-6)


@given(
    tokens=st.integers(0, 5),
    vocab=st.integers(1, 9),
    pad=st.integers(0, 2),
    bucket=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e4, 1e30]),
    t=st.sampled_from([0.1, 1.0, 20.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_sparse_forward_kl_is_finite_for_any_targets_and_logits(
    tokens: int, vocab: int, pad: int, bucket: bool, scale: float, t: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    targets = ragged(g, tokens, vocab, bucket, t)
    student = (torch.randn(tokens, vocab + pad, generator=g) * scale).to(dtype).requires_grad_()
    values = sparse_forward_kl(student, targets, t)
    assert values.dtype == torch.float32
    assert values.shape == (tokens,)
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    if not bucket:
        assert (gradient[:, vocab:] >= 0).all()  # padding columns are never pulled up


@pytest.mark.parametrize("wrong", [-1, 5])
def test_sparse_targets_with_an_id_that_no_column_has_are_refused(wrong: int) -> None:
    none = torch.zeros(1)
    targets = SparseTargets(torch.tensor([1, wrong]), torch.ones(2) / 2, torch.tensor([0, 2]), none, none)
    with pytest.raises(ValueError, match=r"token ids -?1 to (1|5), but there are 5 columns"):
        sparse_forward_kl(torch.zeros(1, 5), targets)


# The fused loss.


def leaves(
    g: torch.Generator, dtype: torch.dtype, scale: float, **shapes: tuple[int, ...]
) -> dict[str, Tensor]:
    out = {}
    for name, shape in shapes.items():
        x = torch.randn(*shape, generator=g, dtype=torch.float64) * (scale if name == "hidden" else 1.0)
        out[name] = x.to(dtype).requires_grad_()
    return out


@given(
    tokens=st.integers(0, 7),
    vocab=st.integers(2, 40),
    pad=st.integers(-1, 2),
    chunk=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e30]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    name=st.sampled_from(sorted(DIVERGENCES)),
    extras=st.sets(st.sampled_from(["bias", "lora", "cap", "scale", "hard", "head"])),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    t=st.sampled_from([0.5, 1.0, 4.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_fused_loss_is_finite_and_dense_for_any_shapes_masks_and_options(
    tokens: int,
    vocab: int,
    pad: int,
    chunk: int,
    scale: float,
    dtype: torch.dtype,
    name: str,
    extras: set[str],
    share: float,
    t: float,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    p = leaves(g, dtype, scale, hidden=(tokens, 3), weight=(vocab, 3), bias=(vocab,), a=(2, 3), b=(vocab, 2))
    mask = torch.rand(tokens, generator=g) < share
    hidden = p["hidden"].masked_fill(~mask[:, None], math.nan)
    states = torch.randn(tokens, 4, generator=g, dtype=torch.float64).to(dtype)
    above = torch.randn(vocab + pad, 4, generator=g, dtype=torch.float64).to(dtype)
    states = states.masked_fill(~mask[:, None], math.nan)
    labels = torch.randint(vocab, (tokens,), generator=g)
    cap, factor = (2.0 if "cap" in extras else None), (0.3 if "scale" in extras else 1.0)
    hard = 0.7 if "hard" in extras else 0.0
    fused = fused_linear_divergence(
        hidden,
        p["weight"],
        TeacherHead(states, above) if "head" in extras else (states @ above.T),
        weights=token_weights(mask, max(1, int(mask.sum()))),
        labels=labels.masked_fill(~mask, -100),
        hard=hard,
        divergence=DIVERGENCES[name],
        temperature=t,
        student_bias=p["bias"] if "bias" in extras else None,
        student_lora=(p["a"], p["b"], 0.5) if "lora" in extras else None,
        softcap=cap,
        logit_scale=factor,
        chunk_tokens=chunk,
    )
    used = [
        "hidden",
        "weight",
        *(["bias"] if "bias" in extras else []),
        *(["a", "b"] if "lora" in extras else []),
    ]
    gradients = torch.autograd.grad(fused.loss, [p[k] for k in used])
    assert fused.loss.isfinite()
    assert fused.values.isfinite().all()
    assert (fused.values[~mask] == 0).all()
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    assert (gradients[0][~mask] == 0).all()
    if not mask.any():
        assert fused.loss == 0
        assert not any(gradient.any() for gradient in gradients)
    elif dtype == torch.float64 and scale < 1e30:
        logits = p["hidden"] @ p["weight"].T
        if "lora" in extras:
            logits = logits + 0.5 * p["hidden"] @ p["a"].T @ p["b"].T
        if "bias" in extras:
            logits = logits + p["bias"]
        logits = logits * factor
        logits = cap * (logits / cap).tanh() if cap else logits
        soft = DIVERGENCES[name](logits[mask], (states @ above.T)[mask], temperature=t)
        want = (
            soft + hard * torch.nn.functional.cross_entropy(logits[mask], labels[mask], reduction="none")
        ).mean()
        torch.testing.assert_close(fused.loss, want, rtol=1e-6, atol=1e-8)  # weights are in fp32
        for got, expected in zip(gradients, torch.autograd.grad(want, [p[k] for k in used]), strict=True):
            torch.testing.assert_close(
                got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-8
            )


def everything(tokens: int) -> dict[str, tuple[Any, str]]:
    """Each kind of teacher for a student of 7 columns, and a divergence that it serves."""
    z = torch.randn(tokens, 7).double()
    p, ids = z.softmax(-1).topk(3)
    offsets, none = torch.arange(tokens + 1) * 3, torch.zeros(tokens)
    tail = (1 - p.sum(-1)).float()
    return {
        "head": (TeacherHead(torch.randn(tokens, 4).double(), torch.randn(7, 4).double()), "forward_kl"),
        "logits": (z, "jensen_shannon"),
        "draws": (SparseTargets(ids.flatten(), p.flatten().float(), offsets, none, none), "forward_kl"),
        "bucket": (
            SparseTargets(ids.flatten(), p.flatten().float(), offsets, tail, none, True),
            "forward_kl",
        ),
        "renormalised": (SparseTargets.renormalised_top_k(ids, p.log()), "renormalised_kl"),
        "scored": (ScoredTokens(ids, p.log()), "reverse_kl"),
        "sampled": (ScoredTokens(ids[:, :1], p.log()[:, :1], sampled=True), "skew_reverse_kl"),
    }


KINDS = list(everything(1))
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("tokens", [0, 4])
def test_a_step_without_tokens_has_loss_and_gradient_zero_for_every_kind_of_teacher(
    kind: str, tokens: int
) -> None:
    p = leaves(
        torch.Generator(),
        torch.float64,
        1.0,
        hidden=(tokens, 3),
        weight=(7, 3),
        bias=(7,),
        a=(2, 3),
        b=(7, 2),
    )
    teacher, divergence = everything(tokens)[kind]
    fused = fused_linear_divergence(
        p["hidden"],
        p["weight"],
        teacher,
        weights=torch.zeros(tokens),
        labels=torch.full((tokens,), -100),
        hard=1.0,
        divergence=divergence,
        student_bias=p["bias"],
        student_lora=(p["a"], p["b"], 2.0),
    )
    assert fused.loss == 0
    assert not fused.values.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(fused.loss, list(p.values())))


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k != "sampled"]
)  # whose gradient is not that of its value
def test_the_fused_loss_passes_gradcheck_for_every_kind_of_teacher(kind: str) -> None:
    p = leaves(
        torch.Generator(), torch.float64, 1.0, hidden=(5, 3), weight=(7, 3), bias=(7,), a=(2, 3), b=(7, 2)
    )
    teacher, divergence = everything(5)[kind]
    weights, labels = torch.rand(5).double(), torch.randint(7, (5,))
    weights[2] = 0

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused_linear_divergence(
            hidden,
            weight,
            teacher,
            weights=weights,
            labels=labels,
            hard=0.3,
            soft=0.8,
            divergence=divergence,
            student_bias=bias,
            student_lora=(a, b, 2.0),
            softcap=3.0,
            logit_scale=0.5,
            chunk_tokens=2,
        ).loss

    assert torch.autograd.gradcheck(loss, list(p.values()))


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("teacher_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_and_teacher_may_differ_in_dtype(
    name: str, teacher_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    p = leaves(torch.Generator().manual_seed(1), dtype, 1.0, hidden=(5, 3), weight=(9, 3))
    z = torch.randn(5, 9).to(teacher_dtype)
    head = TeacherHead(torch.randn(5, 4).to(teacher_dtype), torch.randn(9, 4).to(teacher_dtype))
    divergence, close = DIVERGENCES[name], (1e-4 if dtype == torch.float32 else 6e-2)
    logits = (p["hidden"] @ p["weight"].T).float()
    for teacher, answer in ((z, z), (head, head.hidden.double() @ head.weight.double().T)):
        fused = fused_linear_divergence(p["hidden"], p["weight"], teacher, divergence=divergence)
        want = divergence(logits, answer).detach().float()
        wide = 5e-2 if isinstance(teacher, TeacherHead) and teacher_dtype.itemsize == 2 else 0
        torch.testing.assert_close(fused.values, want, rtol=close + wide, atol=close + wide)
        assert torch.autograd.grad(fused.loss, p["hidden"])[0].dtype == dtype


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"student_bias": torch.zeros(1)}, r"student's bias must have shape \(7,\), got \(1,\)"),
        ({"student_bias": torch.zeros(8)}, "student's bias"),
        ({"student_lora": (torch.zeros(2, 4), torch.zeros(7, 2), 1.0)}, r"A \[rank, 3\] and B \[7, rank\]"),
        ({"student_lora": (torch.zeros(2, 3), torch.zeros(1, 2), 1.0)}, r"got \(2, 3\) and \(1, 2\)"),
        ({"student_lora": (torch.zeros(2, 3), torch.zeros(7, 3), 1.0)}, "student's adapter"),
        ({"softcap": 0.0}, "softcap must be positive, or None"),
        ({"softcap": math.nan}, "softcap must be positive"),
        ({"student_hidden": torch.zeros(())}, r"got \(\) and \(7, 3\)"),
        ({"teacher": TeacherHead(torch.zeros(5, 4), torch.zeros(7, 3))}, "teacher_weight"),
        ({"teacher": TeacherHead(torch.zeros(5, 4), torch.zeros(7, 4), torch.zeros(1))}, "teacher's bias"),
        ({"teacher": TeacherHead(torch.zeros(5, 4), torch.zeros(7, 4), softcap=-1.0)}, "teacher's softcap"),
        ({"labels": torch.zeros(5), "hard": 1.0}, "labels must be int64"),
    ],
)
def test_parts_of_a_head_that_do_not_fit_are_refused_and_never_broadcast(wrong: dict, says: str) -> None:
    arguments = {"student_hidden": torch.zeros(5, 3), "student_weight": torch.zeros(7, 3)}
    with pytest.raises(ValueError, match=says):
        fused_linear_divergence(**{"teacher": torch.zeros(5, 7), **arguments, **wrong})


def halves_with_everything() -> tuple[list[float], list[float]]:
    """How far a fused loss in bf16, with bias, adapter, scale and cap, and a dense one are from float64."""
    p = leaves(
        torch.Generator().manual_seed(2),
        torch.bfloat16,
        1.0,
        hidden=(60, 32),
        weight=(700, 32),
        bias=(700,),
        a=(4, 32),
        b=(700, 4),
    )
    states, above = torch.randn(60, 16).bfloat16(), torch.randn(700, 16).bfloat16()
    names = list(p)

    def dense(h: Tensor, w: Tensor, bias: Tensor, a: Tensor, b: Tensor, z: Tensor) -> list[Tensor]:
        wide = torch.promote_types(h.dtype, torch.float32)
        logits = ((h @ w.T + 0.3 * (h @ a.T @ b.T)).to(wide) + bias) * 0.4
        values = forward_kl(12 * (logits / 12).tanh(), z, 2.0)
        return [values, *torch.autograd.grad(values.mean(), (h, w, bias, a, b))]

    want = dense(
        *(p[k].detach().double().requires_grad_() for k in names), states.double() @ above.double().T
    )
    loose = dense(*(p[k] for k in names), states @ above.T)
    fused = fused_linear_divergence(
        p["hidden"],
        p["weight"],
        TeacherHead(states, above),
        temperature=2.0,
        student_bias=p["bias"],
        student_lora=(p["a"], p["b"], 0.3),
        logit_scale=0.4,
        softcap=12.0,
        chunk_tokens=13,
    )
    ours = [fused.values, *torch.autograd.grad(fused.loss, [p[k] for k in names])]
    far = [[distance(g, w.detach()) for g, w in zip(some, want, strict=True)] for some in (ours, loose)]
    return far[0], far[1]


def test_halves_with_bias_adapter_scale_and_cap_are_no_further_from_float64_than_a_dense_loop() -> None:
    ours, dense = halves_with_everything()
    assert all(mine <= 1.15 * theirs for mine, theirs in zip(ours, dense, strict=True)), (ours, dense)


def test_a_cpu_without_fast_products_of_bf16_widens_them() -> None:
    """In another process, where PyTorch is told that the CPU has no AVX-512."""
    code = (
        "import torch; assert not torch.backends.cpu.get_cpu_capability().startswith('AVX512')\n"
        "from test_losses_extremes import halves_with_everything as f; torch.manual_seed(0); print(*f()[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    value, *gradients = map(float, found.stdout.split())
    assert value < 1e-5  # logits are not rounded at all
    assert max(gradients) < 3e-3  # only once, when they leave


# Features.


@given(
    shape=st.lists(st.integers(0, 3), max_size=2),
    width=st.integers(1, 6),
    kind=st.sampled_from(["mse", "cosine"]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e18]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_hidden_state_loss_is_finite_for_any_shape_mask_and_size(
    shape: list[int], width: int, kind: str, scale: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student, teacher = ((torch.randn(*shape, width, generator=g) * scale).to(dtype) for _ in range(2))
    mask = torch.rand(shape, generator=g) < 0.6
    plain = hidden_state_loss(student, teacher, kind=kind)
    student = student.masked_fill(~mask.unsqueeze(-1), math.nan).requires_grad_()
    values = hidden_state_loss(student, teacher, kind=kind, mask=mask)
    assert values.dtype == torch.float32
    assert values[mask].equal(plain[mask])
    assert (values[~mask] == 0).all()
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()


def test_states_too_large_to_be_squared_cost_infinity_and_never_nan() -> None:
    student = torch.tensor([[1e37, -1e37]], requires_grad=True)
    values = hidden_state_loss(student, -student.detach())
    values.sum().backward()
    assert not values.isnan().any()
    assert not student.grad.isnan().any()


def test_nan_at_padding_reaches_neither_a_projection_nor_a_hint() -> None:
    mask = torch.tensor([[True, True, False], [False, True, True]])
    states, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    broken = states.masked_fill(~mask[..., None], math.nan)
    for module in (Projections({1: 2}, 4, 6, bias=True), Hint(1, 2, 4, 6)):
        found = []
        for x in (states, broken):
            module.zero_grad()
            if isinstance(module, Hint):
                values = module(x, teacher, mask=mask)
            else:
                values = hidden_state_loss(module(1, x, mask), teacher, mask=mask)
            reduce(values, mask, 4).backward()
            found.append([p.grad.clone() for p in module.parameters()])
        for got, want in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, want)
            assert (want != 0).any()


@given(
    layers=st.integers(1, 3),
    width=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e37]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_patience_lies_between_zero_and_four_a_layer_whatever_the_states(
    layers: int, width: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student, teacher = ((torch.randn(2, layers, width, generator=g) * scale).to(dtype) for _ in range(2))
    values = patience_loss(student.requires_grad_(), teacher)
    assert ((values >= -1e-5) & (values <= 4 * layers + 1e-5)).all()
    assert not torch.autograd.grad(values.sum(), student)[0].isnan().any()


@given(
    length=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.3, 0.8]),
    causal=st.booleans(),
    heads=st.sampled_from([2, 4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_tokens_that_no_pair_of_a_mask_holds_may_be_nan(
    length: int, share: float, causal: bool, heads: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    pairs = torch.rand(2, length, length, generator=g) < share
    seen = pairs.tril() if causal else pairs
    used = seen.any(-1) | seen.any(-2)

    def states(heads: int) -> Tensor:
        return torch.randn(2, heads, length, 4, generator=g).masked_fill(~used[:, None, :, None], math.nan)

    q, k, tq, tk = states(2).requires_grad_(), states(1).requires_grad_(), states(heads), states(heads)
    look = partial(attention_maps, mask=pairs, causal=causal)
    for values in (
        attention_loss(look(q, k), look(tq, tk)),
        attention_loss(look(q, k), look(tq, tk), kind="mse"),
        relation_loss(q, tq, 4, mask=pairs, causal=causal) + 0 * look(q, k).exp().sum(),
    ):
        assert values.isfinite().all()
        assert (values[~seen.any(-1)] == 0).all()
        for gradient in torch.autograd.grad(values.sum(), (q, k)):
            assert gradient.isfinite().all()
            assert (gradient.masked_select(~used[:, None, :, None]) == 0).all()


@given(
    vocabs=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    t=st.sampled_from([0.1, 1.0, 20.0]),
    scale=st.sampled_from([1.0, 1e30]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_uld_is_finite_for_tokens_that_the_teacher_forbids(
    vocabs: tuple[int, int], t: float, scale: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, vocab, generator=g) * scale for vocab in vocabs)
    teacher[:, 1:] = teacher[:, 1:].masked_fill(torch.rand(3, vocabs[1] - 1, generator=g) < 0.5, -math.inf)
    values = uld_loss(student.requires_grad_(), teacher, t)
    assert ((values >= 0) & (values <= t * t * (2 + 1e-5))).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


# From values to a loss.


@given(
    mask=st.lists(st.booleans(), max_size=12),
    cut=st.integers(0, 12),
    more=st.integers(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_reduce_sums_selected_values_over_the_steps_count_however_it_is_cut(
    mask: list[bool], cut: int, more: int, dtype: torch.dtype, seed: int
) -> None:
    """`more` tokens are selected in other micro-batches, or on other ranks."""
    g = torch.Generator().manual_seed(seed)
    chosen, count = torch.tensor(mask, dtype=torch.bool), sum(mask) + more
    values = torch.randn(len(mask), generator=g, dtype=torch.float64).to(dtype)
    values = values.masked_fill(~chosen, math.nan).requires_grad_()
    parts = [reduce(values[s], chosen[s], count) for s in (slice(cut), slice(cut, None))]
    want = math.fsum(values.detach()[chosen].tolist()) / count if count else 0.0
    assert float(sum(parts).detach()) == pytest.approx(want, rel=1e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(sum(parts), values)
    weights = token_weights(chosen, count)
    torch.testing.assert_close(gradient, weights.to(dtype))
    assert (weights[chosen] > 0).all() or not count
