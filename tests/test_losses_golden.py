"""Golden values of losses on real distributions: GPT-2's after five prompts, each one the teacher of the next.

Values were worked out apart from this package, in 80-bit floats: a row for T = 1, a row for T = 2, both with T squared.
The divergences with their defaults have theirs in test_divergences.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.losses import (
    ScoredTokens,
    SparseTargets,
    alpha_beta,
    fused_linear_divergence,
    jensen_shannon,
    renormalised_kl,
    reverse_kl,
    scored_reverse_kl,
    scored_skew_reverse_kl,
    skew_kl,
    skew_reverse_kl,
    sparse_forward_kl,
    taid,
    uld_loss,
)

DENSE: dict[str, tuple[Callable[..., Tensor], list[list[float]]]] = {
    "alpha-beta .2 .7": (
        partial(alpha_beta, alpha=0.2, beta=0.7),
        [
            [8.363485447, 6.099992927, 3.792430175, 6.355287995],
            [17.296416168, 8.334336927, 5.05758287, 9.756486611],
        ],
    ),
    "alpha-beta .6 0": (
        partial(alpha_beta, alpha=0.6, beta=0.0),
        [
            [120.570461072, 71.741499871, 56.491199978, 95.825842044],
            [354.098880191, 168.865738168, 111.544826219, 194.480131203],
        ],
    ),
    "alpha-beta 0 .6": (
        partial(alpha_beta, alpha=0.0, beta=0.6),
        [
            [140.355212392, 94.608567995, 52.060091595, 116.731684326],
            [378.783687346, 174.631235721, 104.081437877, 218.522438742],
        ],
    ),
    "skew reverse .7": (
        partial(skew_reverse_kl, alpha=0.7),
        [
            [0.320472978, 0.269168829, 0.167933771, 0.227732708],
            [0.689071721, 0.311992516, 0.190449267, 0.318574179],
        ],
    ),
    "skew .4": (
        partial(skew_kl, alpha=0.4),
        [
            [0.849676888, 0.724540377, 0.498121912, 0.64611437],
            [1.878948469, 0.990082512, 0.631088778, 1.087353149],
        ],
    ),
    "jensen-shannon .2": (
        partial(jensen_shannon, beta=0.2),
        [
            [0.45605777, 0.386712828, 0.252837297, 0.334839719],
            [1.001219488, 0.488308883, 0.305407754, 0.515074817],
        ],
    ),
    "taid .4": (
        partial(taid, t=0.4),
        [
            [1.429593533, 0.659698164, 0.345052924, 0.702698819],
            [1.121658641, 0.535575382, 0.313573999, 0.668188093],
        ],
    ),
    "taid .7": (
        partial(taid, t=0.7),
        [
            [4.056642377, 2.36116984, 1.094292936, 1.8286939],
            [4.096320984, 1.698763777, 0.997500683, 1.896395127],
        ],
    ),
    "uld": (
        uld_loss,
        [
            [0.593437699, 0.578040278, 0.249826113, 0.143040546],
            [2.33985575, 0.576986234, 0.499099101, 0.508145388],
        ],
    ),
}


def bucket(student: Tensor, teacher: Tensor, t: float) -> SparseTargets:
    """The teacher's 8 likeliest tokens, and one outcome for all others."""
    p, ids = (teacher.double() / t).softmax(-1).topk(8)
    tail = 1 - p.sum(-1)
    entropy = torch.special.entr(p).sum(-1) + torch.special.entr(tail)
    offsets = torch.arange(len(p) + 1) * 8
    return SparseTargets(ids.flatten(), p.flatten().float(), offsets, tail.float(), entropy.float(), True, t)


def drawn(student: Tensor, teacher: Tensor, t: float) -> SparseTargets:
    """The 4 likeliest tokens exactly; for the others, as if drawn, the 10th, 20th and 50th, a third each."""
    p = (teacher.double() / t).softmax(-1)
    top, ids = p.topk(50)
    head = top[:, :4]
    weights = torch.cat([head, ((1 - head.sum(-1, keepdim=True)) / 3).expand(-1, 3)], -1)
    ids = ids[:, [0, 1, 2, 3, 9, 19, 49]]
    none, offsets = torch.zeros(len(p)), torch.arange(len(p) + 1) * 7
    entropy = torch.special.entr(p).sum(-1).float()
    return SparseTargets(ids.flatten(), weights.flatten().float(), offsets, none, entropy, temperature=t)


def renormalised(student: Tensor, teacher: Tensor, t: float) -> SparseTargets:
    """The teacher's 8 likeliest tokens, nothing known of the others."""
    scores, ids = teacher.topk(8)
    return SparseTargets.renormalised_top_k(ids, scores, t)


def scored(student: Tensor, teacher: Tensor, t: float) -> ScoredTokens:
    """The student's 16 likeliest tokens."""
    ids = student.topk(16).indices
    return ScoredTokens(ids, (teacher.double() / t).log_softmax(-1).gather(1, ids), temperature=t)


def sampled(student: Tensor, teacher: Tensor, t: float) -> ScoredTokens:
    """One token of the student's, as if drawn: its third likeliest."""
    every = scored(student, teacher, t)
    return ScoredTokens(every.ids[:, 2:3], every.teacher_logprobs[:, 2:3], sampled=True, temperature=t)


Targets = Callable[[Tensor, Tensor, float], SparseTargets | ScoredTokens]
KNOWN: dict[str, tuple[Targets, Callable[..., Tensor], str | Callable[..., Tensor], list[list[float]]]] = {
    "bucket": (
        bucket,
        sparse_forward_kl,
        "forward_kl",
        [
            [4.719019841, 2.684195846, 0.820814111, 0.830356311],
            [1.145159192, 0.29790696, 0.101854979, 0.117582001],
        ],
    ),
    "draws": (  # estimates may be negative
        drawn,
        sparse_forward_kl,
        "forward_kl",
        [
            [6.362211282, 4.235417514, 1.19210391, 2.215300869],
            [2.066043913, 0.15138429, -5.29720037, -2.767371815],
        ],
    ),
    "renormalised": (
        renormalised,
        renormalised_kl,
        "renormalised_kl",
        [
            [3.730034351, 0.983910436, 1.240509658, 2.366389787],
            [3.96392009, 1.608830428, 2.101103728, 2.537944825],
        ],
    ),
    "scored, reverse": (
        scored,
        scored_reverse_kl,
        reverse_kl,
        [
            [5.237478595, 1.808607817, 0.775960214, 1.550332657],
            [0.548091641, 0.202510648, 0.111705031, 0.223422415],
        ],
    ),
    "scored, skew reverse": (
        scored,
        scored_skew_reverse_kl,
        skew_reverse_kl,
        [
            [0.987515224, 0.588690793, 0.356875637, 0.322306282],
            [0.218367392, 0.111792281, 0.071853387, 0.090740736],
        ],
    ),
    "sampled, reverse": (
        sampled,
        scored_reverse_kl,
        reverse_kl,
        [
            [11.003462086, 8.431207427, -1.559426579, 11.19297158],
            [19.983796167, 15.447725291, -3.046165309, 22.055936205],
        ],
    ),
    "sampled, skew reverse": (
        sampled,
        scored_skew_reverse_kl,
        skew_reverse_kl,
        [
            [2.302435308, 2.300625391, -1.477159197, 2.302461165],
            [8.973916415, 8.517061906, -2.827050455, 9.067828782],
        ],
    ),
}
HARD = [18.46316391, 8.31766205, 3.605199896, 10.14920494]  # of the teacher's likeliest token, at T = 1

at_both_temperatures = pytest.mark.parametrize("t", [1.0, 2.0])


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> tuple[Tensor, Tensor]:
    """GPT-2 as student and as teacher: float32 logits `[4, 50257]` each."""
    with gzip.open(shared_data / "gpt2-logits" / "gpt2_examples.json.gz") as file:
        logits = torch.from_numpy(np.array([x["last_logits"] for x in json.load(file)], dtype=np.float32))
    return logits[1:], logits[:-1]


def fused(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and a head whose logits are these: each row is picked by a one-hot hidden state."""
    return torch.eye(len(logits), dtype=logits.dtype), logits.T.contiguous()


@pytest.mark.parametrize("name", DENSE)
@at_both_temperatures
def test_dense_losses_have_their_golden_values(gpt2: tuple[Tensor, Tensor], name: str, t: float) -> None:
    student, teacher = gpt2
    loss, golden = DENSE[name]
    want = torch.tensor(golden[int(t) - 1], dtype=torch.float64)
    wide = loss(student.double(), teacher.double(), temperature=t)
    torch.testing.assert_close(wide, want, rtol=1e-9, atol=2e-9)
    narrow = loss(student, teacher, temperature=t)
    torch.testing.assert_close(narrow.double(), want, rtol=1e-5, atol=1e-5)
    if loss is not uld_loss:
        got = fused_linear_divergence(*fused(student), teacher, divergence=loss, temperature=t)
        torch.testing.assert_close(got.values.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KNOWN)
@at_both_temperatures
def test_losses_of_a_few_known_tokens_have_their_golden_values(
    gpt2: tuple[Tensor, Tensor], name: str, t: float
) -> None:
    student, teacher = gpt2
    build, loss, divergence, golden = KNOWN[name]
    targets, want = build(student, teacher, t), torch.tensor(golden[int(t) - 1], dtype=torch.float64)
    wide = loss(student.double(), targets, t)  # the targets' own weights and entropies are in fp32
    torch.testing.assert_close(wide, want, rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(loss(student, targets, t).double(), want, rtol=1e-5, atol=1e-5)
    got = fused_linear_divergence(
        *fused(student), targets, divergence=divergence, temperature=t, chunk_tokens=3
    )
    torch.testing.assert_close(got.values.double(), want, rtol=1e-5, atol=1e-5)


def test_hard_labels_have_their_golden_values(gpt2: tuple[Tensor, Tensor]) -> None:
    student, teacher = gpt2
    got = fused_linear_divergence(
        *fused(student), None, labels=teacher.argmax(-1), hard=1.0, soft=0.0, temperature=3.0
    )
    torch.testing.assert_close(got.hard_values, torch.tensor(HARD), rtol=1e-6, atol=1e-5)
