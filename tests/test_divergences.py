"""Divergences with settings, TAID, renormalised top-k: against loops in float64, real GPT-2 and another library."""

from __future__ import annotations

import gzip
import json
import math
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_given import seeded  # noqa: F401
from torch import Tensor

from stillroom.losses import (
    ScoredTokens,
    SparseTargets,
    TaidSchedule,
    TeacherHead,
    alpha_beta,
    forward_kl,
    fused_linear_divergence,
    jensen_shannon,
    reduce,
    renormalised_kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    sparse_forward_kl,
    taid,
    token_weights,
    total_variation,
)

EXPONENTS = [(0.2, 0.7), (1.0, 1.0), (0.3, 0.05), (2.0, 0.5), (0.6, 0.0), (0.0, 0.6), (1.0, 0.0), (0.0, 1.0)]
SETTINGS = [
    forward_kl,
    reverse_kl,
    total_variation,
    jensen_shannon,
    skew_kl,
    skew_reverse_kl,
    partial(skew_reverse_kl, alpha=0.7),
    partial(taid, t=0.4),
    *(partial(alpha_beta, alpha=a, beta=b) for a, b in EXPONENTS),
]


def distribution(logits: Tensor, t: float = 1.0) -> list[list[float]]:
    """Softmax by loops: one list of probabilities a token."""
    out = []
    for row in logits.tolist():
        weights = [math.exp((z - max(row)) / t) for z in row]
        out.append([w / math.fsum(weights) for w in weights])
    return out


def kl_loop(a: list[float], b: list[float]) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


# Alpha-beta and skew reverse KL.


@pytest.mark.parametrize(("alpha", "beta"), EXPONENTS)
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_alpha_beta_agrees_with_its_formula(alpha: float, beta: float, t: float) -> None:
    student, teacher = (torch.randn(5, 23).double() * 3 for _ in range(2))
    want = []
    for p, q in zip(distribution(teacher, t), distribution(student, t), strict=True):
        s, total = alpha + beta, 0.0
        for x, y in zip(p, q, strict=True):
            if beta == 0:
                total += (x**alpha * math.log(x**alpha / y**alpha) - x**alpha + y**alpha) / alpha**2
            elif alpha == 0:
                total += (y**beta * math.log(y**beta / x**beta) - y**beta + x**beta) / beta**2
            else:
                total -= (x**alpha * y**beta - alpha / s * x**s - beta / s * y**s) / (alpha * beta)
        want.append(t * t * total)
    got = alpha_beta(student, teacher, t, alpha, beta)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    narrow = alpha_beta(student.float(), teacher.float(), t, alpha, beta)
    torch.testing.assert_close(narrow.double(), got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), EXPONENTS)
def test_gradient_of_alpha_beta_passes_gradcheck(alpha: float, beta: float) -> None:
    student = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 6, dtype=torch.float64)
    teacher[0, 2] = -math.inf
    assert torch.autograd.gradcheck(lambda x: alpha_beta(x, teacher, 1.7, alpha, beta), student)


def test_alpha_beta_ends_in_forward_and_reverse_kl() -> None:
    student, teacher = torch.randn(5, 20).double(), torch.randn(5, 20).double()
    teacher[:, 4] = -math.inf
    torch.testing.assert_close(alpha_beta(student, teacher, 2.0, 1, 0), forward_kl(student, teacher, 2.0))
    torch.testing.assert_close(alpha_beta(student, teacher, 2.0, 0, 1), reverse_kl(student, teacher, 2.0))
    near = alpha_beta(student, teacher, alpha=1.0, beta=1e-7)
    torch.testing.assert_close(near, forward_kl(student, teacher), rtol=1e-5, atol=1e-6)
    teacher[:, 4] = 0.0  # at alpha 0 a forbidden token costs nothing, but the nearer to it the more
    near = alpha_beta(student, teacher, alpha=1e-7, beta=1.0)
    torch.testing.assert_close(near, reverse_kl(student, teacher), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", SETTINGS)
def test_equal_distributions_are_at_zero_and_stay_there(divergence: partial) -> None:
    teacher = torch.randn(4, 50) * 5
    student = (teacher + 3.0).requires_grad_()
    values = divergence(student, teacher, temperature=2.0)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(4), rtol=0, atol=1e-5)
    if divergence is not total_variation:  # which has a kink there
        torch.testing.assert_close(student.grad, torch.zeros(4, 50), rtol=0, atol=1e-5)


def test_skew_reverse_kl_mixes_the_student_into_the_target() -> None:
    student, teacher = torch.randn(5, 20).double(), torch.randn(5, 20).double()
    want = []
    for p, q in zip(distribution(teacher, 2.0), distribution(student, 2.0), strict=True):
        want.append(4 * kl_loop(q, [0.3 * y + 0.7 * x for x, y in zip(p, q, strict=True)]))
    got = skew_reverse_kl(student, teacher, 2.0, alpha=0.3)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    assert skew_reverse_kl(student, teacher, 2.0, 0.0).equal(reverse_kl(student, teacher, 2.0))
    swapped = skew_kl(teacher, student, 2.0, 0.3)
    torch.testing.assert_close(got, swapped)


def test_a_token_that_the_teacher_forbids_costs_skew_reverse_kl_its_mass_times_log_one_over_alpha() -> None:
    student, teacher = torch.randn(1, 9).double(), torch.randn(1, 9).double()
    teacher[0, 3] = -1e4
    cut = teacher.clone()
    cut[0, 3] = -math.inf
    torch.testing.assert_close(skew_reverse_kl(student, cut), skew_reverse_kl(student, teacher))
    alone = torch.full_like(cut, -math.inf)
    alone[0, 0] = 0.0
    sure = torch.full_like(student, -1e3)
    sure[0, 3] = 0.0  # all mass where the teacher has none
    torch.testing.assert_close(
        skew_reverse_kl(sure, alone, alpha=0.2), torch.tensor([-math.log(0.2)], dtype=torch.float64)
    )


# TAID.


@pytest.mark.parametrize("t", [0.3, 0.4, 0.8, 1.0])
def test_taid_is_forward_kl_to_a_target_between_student_and_teacher(t: float) -> None:
    student = torch.randn(5, 17).double().requires_grad_()
    teacher = torch.randn(5, 17).double()
    values = taid(student, teacher, 2.0, t=t)
    target = (1 - t) * student.detach() + t * teacher
    want = [
        4 * kl_loop(p, q)
        for p, q in zip(distribution(target, 2.0), distribution(student.detach(), 2.0), strict=True)
    ]
    torch.testing.assert_close(values.detach(), torch.tensor(want, dtype=torch.float64))
    (got,) = torch.autograd.grad(values.sum(), student)
    (fixed,) = torch.autograd.grad(forward_kl(student, target, 2.0).sum(), student)
    torch.testing.assert_close(got, fixed)  # the target is not pulled towards the student


@pytest.mark.parametrize("t", [0.4, 0.7])
def test_taids_target_gives_nothing_to_forbidden_and_padding_tokens(t: float) -> None:
    teacher = torch.randn(3, 8)
    teacher[:, 2] = -math.inf
    student = torch.randn(3, 11, requires_grad=True)
    values = taid(student, teacher, t=t)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert (student.grad[:, [2, 8, 9, 10]] > 0).all()


def test_taid_in_the_fused_loss_equals_dense() -> None:
    hidden, weight = torch.randn(7, 5).double().requires_grad_(), torch.randn(19, 5).double().requires_grad_()
    teacher = TeacherHead(torch.randn(7, 4).double(), torch.randn(19, 4).double())
    fused = fused_linear_divergence(
        hidden, weight, teacher, divergence=partial(taid, t=0.6), temperature=2.0, chunk_tokens=3
    )
    want = taid(hidden @ weight.T, teacher.hidden @ teacher.weight.T, 2.0, t=0.6).mean()
    torch.testing.assert_close(fused.loss, want)
    got_grads = torch.autograd.grad(fused.loss, (hidden, weight))
    for got, expected in zip(got_grads, torch.autograd.grad(want, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, expected)


@given(losses=st.lists(st.floats(0, 1e6) | st.just(math.nan), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_taids_schedule_never_goes_back_nor_falls_behind_the_line_nor_leaves_its_range(losses: list) -> None:
    schedule = TaidSchedule(len(losses), rate=0.05)
    last = schedule.t
    assert last == 0.4
    for i, loss in enumerate(losses, 1):
        t = schedule.update(loss)
        assert last <= t <= 1.0
        assert t >= 0.4 + 0.6 * i / len(losses) - 1e-12
        last = t
    assert last == pytest.approx(1.0)


def test_taids_schedule_follows_the_papers_update() -> None:
    losses = [5.0, 4.0, 4.4, 3.0, 2.9]
    schedule = TaidSchedule(100_000, rate=0.1, momentum=0.9)
    got = [schedule.update(loss) for loss in losses]
    t, m, want = 0.4, 0.0, [0.4 + 0.6 / 100_000]
    for i in range(1, len(losses)):
        t = want[-1]
        m = 0.9 * m + 0.1 * (losses[i - 1] - losses[i]) / losses[i - 1]
        want.append(max(0.4 + 0.6 * (i + 1) / 100_000, t + 0.1 / (1 + math.exp(-m)) * (1 - t)))
    assert got == pytest.approx(want, rel=1e-12)


def test_taids_schedule_goes_on_from_its_state() -> None:
    first, whole = TaidSchedule(10, rate=0.01), TaidSchedule(10, rate=0.01)
    losses = [3.0, 2.0, 2.5, math.nan, 1.0, 0.8]
    want = [whole.update(loss) for loss in losses]
    for loss in losses[:3]:
        first.update(loss)
    second = TaidSchedule(10, rate=0.01)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.t == first.t
    assert [second.update(loss) for loss in losses[3:]] == want[3:]
    with pytest.raises(ValueError, match="previous"):
        second.load_state_dict({"t": 0.5})


# Renormalised top-k.


def renormalised(teacher: Tensor, k: int, t: float = 1.0) -> SparseTargets:
    scores, ids = teacher.topk(k)
    return SparseTargets.renormalised_top_k(ids, scores, t)


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_renormalised_kl_is_the_kl_within_the_kept_tokens(t: float) -> None:
    student = torch.randn(6, 15, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 15).double()
    targets = renormalised(teacher, 4, t)
    want = []
    for i, ids in enumerate(targets.ids.view(6, 4).tolist()):
        p, q = (distribution(x[i : i + 1, ids], t)[0] for x in (teacher, student.detach()))
        want.append(t * t * kl_loop(p, q))
    got = renormalised_kl(student, targets, t)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: renormalised_kl(x, targets, t), student)


def test_a_student_equal_to_the_teacher_is_at_rest_under_renormalised_kl() -> None:
    """The usual plain form would go on sharpening it: all mass to the kept tokens."""
    teacher = torch.randn(4, 30)
    student = (teacher + 1.0).requires_grad_()
    values = renormalised_kl(student, renormalised(teacher, 5))
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros(4, 30), rtol=0, atol=1e-6)


def test_renormalised_kl_moves_no_token_that_was_not_kept() -> None:
    teacher, student = torch.randn(3, 12), torch.randn(3, 12, requires_grad=True)
    targets = renormalised(teacher, 4)
    renormalised_kl(student, targets).sum().backward()
    assert student.grad is not None
    assert student.grad[targets.to_dense(12) == 0].eq(0).all()
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(3), rtol=0, atol=1e-6)


def test_renormalised_kl_with_every_token_kept_is_forward_kl() -> None:
    teacher, student = torch.randn(3, 12), torch.randn(3, 12)
    got = renormalised_kl(student, renormalised(teacher, 12, 2.0), 2.0)
    torch.testing.assert_close(got, forward_kl(student, teacher, 2.0), rtol=1e-5, atol=1e-5)


def test_a_position_of_which_nothing_is_kept_has_no_renormalised_kl() -> None:
    student = torch.randn(2, 6, requires_grad=True)
    none = torch.zeros(2)
    targets = SparseTargets(
        torch.tensor([1]), torch.ones(1), torch.tensor([0, 0, 1]), none, none, renormalised=True
    )
    values = renormalised_kl(student, targets)
    values.sum().backward()
    assert values.eq(0).all()
    assert student.grad is not None
    assert student.grad.eq(0).all()


def test_fused_renormalised_kl_equals_unfused_and_survives_splitting() -> None:
    hidden, weight = torch.randn(7, 5).double().requires_grad_(), torch.randn(19, 5).double().requires_grad_()
    targets = renormalised(torch.randn(7, 19).double(), 3)
    want = renormalised_kl(hidden @ weight.T, targets).mean()
    expected = torch.autograd.grad(want, (hidden, weight))
    for chunk in (1, 3, 256):
        fused = fused_linear_divergence(
            hidden, weight, targets, divergence="renormalised_kl", chunk_tokens=chunk
        )
        torch.testing.assert_close(fused.loss, want)
        for got, e in zip(torch.autograd.grad(fused.loss, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(got, e)
    assert SparseTargets.cat(targets.split(2)).kind == "renormalised"
    assert targets.select(torch.tensor([2, 0])).kind == "renormalised"


def kinds() -> dict[str, SparseTargets]:
    none = torch.zeros(2)
    ids, weights, offsets = torch.tensor([0, 1]), torch.ones(2), torch.arange(3)
    return {
        "unbiased": SparseTargets(ids, weights, offsets, none, none),
        "bucket": SparseTargets(ids, weights / 2, offsets, none + 0.5, none, bucket=True),
        "renormalised": SparseTargets.renormalised_top_k(torch.tensor([[0], [1]]), torch.zeros(2, 1)),
    }


NAMES = ["forward_kl", "renormalised_kl", "reverse_kl", "skew_reverse_kl", "skew_kl", "alpha_beta"]


@pytest.mark.parametrize("kind", ["unbiased", "bucket", "renormalised"])
@pytest.mark.parametrize(
    "divergence", [*NAMES, reverse_kl, partial(taid, t=0.5), partial(skew_kl, alpha=0.2)]
)
def test_every_pairing_of_sparse_targets_with_a_loss_that_would_be_biased_is_refused(
    kind: str, divergence: str
) -> None:
    targets = kinds()[kind]
    assert targets.kind == kind
    hidden, weight = torch.randn(2, 3), torch.randn(6, 3)
    if divergence == ("renormalised_kl" if kind == "renormalised" else "forward_kl"):
        assert fused_linear_divergence(hidden, weight, targets, divergence=divergence).loss.isfinite()
        return
    with pytest.raises(ValueError, match=r"biased|linear in p|renormalised"):
        fused_linear_divergence(hidden, weight, targets, divergence=divergence)


def test_losses_called_with_targets_of_another_kind_refuse_them() -> None:
    student, several = torch.randn(2, 6), kinds()
    for kind in ("unbiased", "bucket"):
        with pytest.raises(ValueError, match=kind):
            renormalised_kl(student, several[kind])
    with pytest.raises(ValueError, match="left out"):
        sparse_forward_kl(student, several["renormalised"])
    with pytest.raises(ValueError, match=r"logits, got SparseTargets"):
        reverse_kl(student, several["unbiased"])
    with pytest.raises(ValueError, match=r"temperature 1\.0, the loss asks for 2\.0"):
        renormalised_kl(student, several["renormalised"], 2.0)
    with pytest.raises(ValueError, match="different kinds"):
        SparseTargets.cat([several["unbiased"], several["renormalised"]])
    with pytest.raises(ValueError, match="renormalised top-k"):
        fused_linear_divergence(student, torch.randn(4, 6), torch.randn(2, 4), divergence="renormalised_kl")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: alpha_beta(x, x, alpha=-0.1, beta=1.0),
        lambda x: alpha_beta(x, x, alpha=0.0, beta=0.0),
        lambda x: alpha_beta(x, x, alpha=math.nan),
        lambda x: skew_reverse_kl(x, x, alpha=1.0),
        lambda x: skew_reverse_kl(x, x, alpha=-0.1),
        lambda x: taid(x, x, t=0.0),
        lambda x: taid(x, x, t=1.1),
        lambda x: TaidSchedule(0),
        lambda x: TaidSchedule(5, start=0.0),
        lambda x: TaidSchedule(5, start=0.9, end=0.5),
        lambda x: TaidSchedule(5, rate=2.0),
        lambda x: TaidSchedule(5, momentum=1.0),
        lambda x: SparseTargets.renormalised_top_k(torch.tensor([[1, 1]]), torch.zeros(1, 2)),
        lambda x: SparseTargets.renormalised_top_k(torch.tensor([[1, 2]]), torch.zeros(1, 3)),
        lambda x: SparseTargets.renormalised_top_k(torch.tensor([[1, 2]]), torch.zeros(1, 2), 0.0),
        lambda x: SparseTargets(**{**vars(kinds()["bucket"]), "renormalised": True}),
    ],
)
def test_settings_out_of_range_are_value_errors(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r".+"):
        call(torch.zeros(2, 4))


# Nothing gives NaN.


@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    vocab=st.integers(2, 12),
    pad=st.integers(-1, 2),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    forbidden=st.floats(0, 0.9),
    t=st.sampled_from([0.5, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_divergences_are_finite_and_not_negative_whatever_shapes_masks_and_logits(
    shape: list, vocab: int, pad: int, scale: float, forbidden: float, t: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(*shape, vocab, generator=g) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(*shape, vocab + pad, generator=g) * scale).to(dtype)
    cut = torch.rand(teacher.shape, generator=g) < forbidden
    cut[..., 0] = False
    teacher = teacher.masked_fill(cut, -math.inf)
    mask = torch.rand(shape, generator=g) < 0.5
    for divergence in SETTINGS:
        values = divergence(student, teacher, temperature=t)
        assert values.shape == torch.Size(shape)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= -1e-5 * max(1.0, t * t)).all()
        loss = reduce(values, mask, int(mask.sum()))
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.isfinite().all()
        assert gradient[~mask].eq(0).all()
        if not mask.any():
            assert loss == 0


@given(
    tokens=st.integers(1, 5),
    vocab=st.integers(2, 9),
    scale=st.sampled_from([1.0, 1e4]),
    kind=st.sampled_from(["renormalised", "bucket"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_top_k_losses_are_finite_for_extreme_logits_and_any_k(
    tokens: int, vocab: int, scale: float, kind: str, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, vocab + 1, (), generator=g))
    student = (torch.randn(tokens, vocab, generator=g) * scale).requires_grad_()
    scores = torch.randn(tokens, vocab, generator=g) * scale
    scores = scores.masked_fill(torch.rand(tokens, vocab, generator=g) < 0.3, -math.inf)
    scores[:, 0] = 0.0
    targets = renormalised(scores, k)
    if kind == "bucket":
        p = scores.double().softmax(-1)
        tail = (1 - targets.to_dense(vocab).bool().double().mul(p).sum(-1)).float()  # rounding and all
        targets = SparseTargets(
            targets.ids,
            p.gather(1, targets.ids.view(tokens, k)).flatten().float(),
            targets.offsets,
            tail.clamp(min=1e-8),
            torch.zeros(tokens),
            bucket=True,
        )
    values = (renormalised_kl if kind == "renormalised" else sparse_forward_kl)(student, targets)
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("divergence", SETTINGS)
def test_values_and_gradients_of_a_token_do_not_depend_on_its_neighbours(divergence: partial) -> None:
    """So padding on either side, packing and splitting change nothing."""
    student, teacher = torch.randn(6, 11).double().requires_grad_(), torch.randn(6, 11).double()
    whole = divergence(student, teacher)
    (gradient,) = torch.autograd.grad(whole.sum(), student)
    order = torch.tensor([5, 0, 3])
    few = student.detach()[order].requires_grad_()
    values = divergence(few, teacher[order])
    torch.testing.assert_close(values, whole[order])
    torch.testing.assert_close(torch.autograd.grad(values.sum(), few)[0], gradient[order])


# Real distributions: GPT-2's after five prompts, each one the teacher of the next. Values were worked out apart from
# this package, in 80-bit floats: a row for T = 1, a row for T = 2, both with T squared.

GOLDEN = {
    forward_kl: (
        [8.728920931, 4.393494892, 2.400743264, 3.513100143],
        [9.547179177, 3.586036235, 2.128534430, 3.700191127],
    ),
    reverse_kl: (
        [7.970122753, 4.129802571, 2.161094415, 4.467194247],
        [7.481598750, 3.388600261, 1.988951015, 4.137133046],
    ),
    jensen_shannon: (
        [0.637764020, 0.543511686, 0.365428410, 0.477854503],
        [1.413121166, 0.719453448, 0.455175292, 0.774152331],
    ),
    skew_kl: (
        [2.121655248, 1.830806523, 1.223395238, 1.599024475],
        [4.826739635, 2.426293994, 1.528533970, 2.564331133],
    ),
    skew_reverse_kl: (
        [2.130101776, 1.819971042, 1.234248226, 1.606980156],
        [4.682622938, 2.388338034, 1.495502401, 2.620738495],
    ),
    alpha_beta: (
        [3.513380945, 2.759299696, 1.728748003, 2.421719769],
        [6.625634833, 3.133148092, 1.925770960, 3.420772455],
    ),
    total_variation: (
        [0.956955729, 0.886694766, 0.719422096, 0.813860955],
        [2.822407922, 1.952440294, 1.545637427, 2.015158194],
    ),
}


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tensor:
    """float32 `[5, 50257]`: GPT-2's logits after five prompts."""
    with gzip.open(shared_data / "gpt2-logits" / "gpt2_examples.json.gz") as file:
        return torch.from_numpy(np.array([x["last_logits"] for x in json.load(file)], dtype=np.float32))


@pytest.mark.parametrize("divergence", GOLDEN)
@pytest.mark.parametrize("t", [1, 2])
def test_divergences_of_real_gpt2_distributions_have_their_golden_values(
    gpt2: Tensor, divergence: partial, t: int
) -> None:
    want = torch.tensor(GOLDEN[divergence][t - 1], dtype=torch.float64)
    wide = divergence(gpt2[1:].double(), gpt2[:-1].double(), temperature=t)
    torch.testing.assert_close(wide, want, rtol=0, atol=2e-9)
    narrow = divergence(gpt2[1:], gpt2[:-1], temperature=t)
    torch.testing.assert_close(narrow.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"),
    # A head of GPT-2's own logits sums 50,257 terms that cancel: in fp32 the dense gradient is itself no better.
    [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-5, 3e-4)],
)
def test_on_real_distributions_dense_fused_and_sparse_with_all_tokens_kept_agree(
    gpt2: Tensor, dtype: torch.dtype, value: float, gradient: float
) -> None:
    """Each student row is picked by a one-hot hidden state, so that fused logits are GPT-2's own."""
    hidden = torch.eye(4, dtype=dtype).requires_grad_()
    weight = (gpt2[1:] - gpt2[1:].mean(-1, keepdim=True)).T.to(dtype)
    teacher = gpt2[:-1].to(dtype)
    p = teacher.double().softmax(-1)
    tokens, vocab = teacher.shape
    sparse = SparseTargets(
        torch.arange(vocab).repeat(tokens),
        p.flatten().float(),
        torch.arange(tokens + 1) * vocab,
        torch.zeros(tokens),
        torch.special.entr(p).sum(-1).float(),
    )
    everything = ScoredTokens(torch.arange(vocab).expand(tokens, -1), teacher.log_softmax(-1))
    for name, dense, kind in (
        ("forward_kl", forward_kl, sparse),
        ("reverse_kl", reverse_kl, everything),
        ("skew_reverse_kl", skew_reverse_kl, everything),
    ):
        want = dense(hidden @ weight.T, teacher)
        (expected,) = torch.autograd.grad(want.mean(), hidden)
        for known in (teacher, kind):
            fused = fused_linear_divergence(hidden, weight, known, divergence=name, chunk_tokens=3)
            torch.testing.assert_close(fused.values, want.detach(), rtol=value, atol=value)
            (got,) = torch.autograd.grad(fused.loss, hidden)
            close = gradient * float(expected.abs().max())
            torch.testing.assert_close(got, expected, rtol=gradient, atol=close)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_jensen_shannon_agrees_with_trl_but_for_the_t_squared_that_it_leaves_out(
    gpt2: Tensor, beta: float, t: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student = gpt2[1:].clone().requires_grad_()
    theirs = trl.GKDTrainer.generalized_jsd_loss(
        student, gpt2[:-1], beta=beta, temperature=t, reduction="sum"
    )
    (their_gradient,) = torch.autograd.grad(theirs, student)
    ours = jensen_shannon(student, gpt2[:-1], t, beta).sum()
    (our_gradient,) = torch.autograd.grad(ours, student)
    torch.testing.assert_close(ours, t * t * theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, t * t * their_gradient, rtol=1e-4, atol=1e-6)


def test_micro_batches_of_any_cut_add_up() -> None:
    hidden, weight = torch.randn(9, 5).double(), torch.randn(19, 5).double().requires_grad_()
    teacher = torch.randn(9, 19).double()
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0]).bool()
    weights = token_weights(mask, int(mask.sum()))
    for divergence in ("alpha_beta", "skew_reverse_kl", partial(taid, t=0.5)):
        whole = fused_linear_divergence(hidden, weight, teacher, weights=weights, divergence=divergence).loss
        (want,) = torch.autograd.grad(whole, weight)
        got, loss = torch.zeros_like(want), 0.0
        for s in (slice(0, 2), slice(2, 3), slice(3, 9)):
            part = fused_linear_divergence(
                hidden[s], weight, teacher[s], weights=weights[s], divergence=divergence, chunk_tokens=2
            ).loss
            got += torch.autograd.grad(part, weight)[0]
            loss += float(part.detach())
        torch.testing.assert_close(got, want)
        assert loss == pytest.approx(float(whole.detach()))
