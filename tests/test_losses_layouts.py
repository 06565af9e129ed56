"""How a step is laid out changes nothing: padding on either side, packing, micro-batches, accumulation, for every loss.

Everything is compared with the documents one at a time, whose gradients add up in `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from stillroom.losses import (
    Aligned,
    Hint,
    MatchWeights,
    Projections,
    ScoredTokens,
    SparseTargets,
    TeacherHead,
    alpha_beta,
    attention_loss,
    attention_maps,
    capture_attention,
    classifier_loss,
    fused_linear_divergence,
    hidden_state_loss,
    map_layers,
    patience_loss,
    reduce,
    relation_loss,
    shared_tokens,
    span_aligned_loss,
    taid,
    token_weights,
    uld_loss,
    weighted_components,
)

LENGTHS = (5, 2, 7, 3)
TOKENS, VOCAB = sum(LENGTHS), 23
ENDS = [sum(LENGTHS[: i + 1]) for i in range(len(LENGTHS))]
DOCUMENTS = [list(range(end - n, end)) for end, n in zip(ENDS, LENGTHS, strict=True)]
COUNTS = torch.tensor([i not in (0, 5, 7, 8, 14) for i in range(TOKENS)])  # the others are prompt
COUNT = int(COUNTS.sum())

# Each layout is a list of micro-batches, each a list of rows, each a list of tokens; -1 is padding.
Layout = list[list[list[int]]]


def padded(documents: list[list[int]], side: str) -> list[list[int]]:
    longest = max(map(len, documents))
    rows = []
    for document in documents:
        pad = [-1] * (longest - len(document))
        rows.append(pad + document if side == "left" else document + pad)
    return rows


ALONE: Layout = [[document] for document in DOCUMENTS]
LAYOUTS: dict[str, Layout] = {
    "padded right": [padded(DOCUMENTS, "right")],
    "padded left": [padded(DOCUMENTS, "left")],
    "two micro-batches": [padded(DOCUMENTS[:3], "right"), padded(DOCUMENTS[3:], "left")],
    "packed": [[list(range(TOKENS))]],
    "packed in another order, with padding": [[DOCUMENTS[2] + DOCUMENTS[0] + [-1] * 3 + DOCUMENTS[1]], [DOCUMENTS[3]]],
}  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert any((value != 0).any() for name, value in want.items() if name != "loss")
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-9 + 1e-6 * float(value.abs().max()))


# The fused loss, with every kind of teacher.


@cache
def problem() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"hidden": (TOKENS, 6), "weight": (VOCAB, 6), "bias": (VOCAB,), "teacher": (TOKENS, VOCAB)}
    out = {name: torch.randn(*shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    out["teacher_hidden"] = torch.randn(TOKENS, 4, generator=g, dtype=torch.float64)
    out["teacher_weight"] = torch.randn(VOCAB, 4, generator=g, dtype=torch.float64)
    out["labels"] = torch.randint(VOCAB, (TOKENS,), generator=g)
    return out


def own_choice(k: int) -> ScoredTokens:
    p = problem()
    ids = (p["hidden"] @ p["weight"].T).topk(k).indices
    return ScoredTokens(ids, p["teacher"].log_softmax(-1).gather(1, ids), sampled=k == 1)


def kept(bucket: bool) -> SparseTargets:
    p, ids = problem()["teacher"].softmax(-1).topk(5)
    tail = (1 - p.sum(-1)).float() if bucket else torch.zeros(TOKENS)
    weights = p if bucket else p / p.sum(-1, keepdim=True)
    offsets = torch.arange(TOKENS + 1) * 5
    return SparseTargets(
        ids.flatten(), weights.flatten().float(), offsets, tail, torch.ones(TOKENS), bucket=bucket
    )


def renormalised() -> SparseTargets:
    scores, ids = problem()["teacher"].topk(5)
    return SparseTargets.renormalised_top_k(ids, scores)


TEACHERS: dict[str, tuple[Callable[[], Any], Any]] = {
    **{
        f"head, {name}": (lambda: None, name)
        for name in ("forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation")
    },
    "head, alpha-beta": (lambda: None, partial(alpha_beta, alpha=0.3, beta=0.9)),
    "head, TAID": (lambda: None, partial(taid, t=0.6)),
    "logits": (lambda: problem()["teacher"], "reverse_kl"),
    "draws": (partial(kept, False), "forward_kl"),
    "bucket": (partial(kept, True), "forward_kl"),
    "renormalised": (renormalised, "renormalised_kl"),
    "scored top-k": (partial(own_choice, 4), "reverse_kl"),
    "scored top-k, skew": (partial(own_choice, 4), "skew_reverse_kl"),
    "scored sample": (partial(own_choice, 1), "reverse_kl"),
}  # fmt: skip


@cache
def fused(teacher: str, layout: str | None) -> dict[str, Tensor]:
    """Loss and accumulated gradients; whatever stands at padding is NaN, or makes no sense."""
    p = problem()
    build, divergence = TEACHERS[teacher]
    known = build()
    hidden, weight, bias = (p[k].clone().requires_grad_() for k in ("hidden", "weight", "bias"))
    total = torch.zeros((), dtype=torch.float64)
    for rows in ALONE if layout is None else LAYOUTS[layout]:
        places = torch.tensor(rows).flatten()
        pad, at = places < 0, places.clamp(min=0)

        def spoilt(x: Tensor, pad: Tensor = pad, at: Tensor = at) -> Tensor:
            return x[at].masked_fill(pad[:, None], math.nan)

        answer: Any = TeacherHead(spoilt(p["teacher_hidden"]), p["teacher_weight"])
        if isinstance(known, Tensor):
            answer = spoilt(known)
        elif isinstance(known, SparseTargets):
            answer = known.select(at)
        elif isinstance(known, ScoredTokens):
            answer = ScoredTokens(known.ids[at], spoilt(known.teacher_logprobs), sampled=known.sampled)
        loss = fused_linear_divergence(
            spoilt(hidden),
            weight,
            answer,
            weights=token_weights(COUNTS[at] & ~pad, COUNT),
            labels=p["labels"][at].masked_fill(pad, -100),
            hard=0.2,
            divergence=divergence,
            student_bias=bias,
            softcap=4.0,
            chunk_tokens=4,
        ).loss
        loss.backward()
        total += loss.detach()
    return {"loss": total, "hidden": hidden.grad, "weight": weight.grad, "bias": bias.grad}


@pytest.mark.parametrize("teacher", TEACHERS)
@every_layout
def test_the_fused_loss_does_not_see_how_tokens_are_laid_out(teacher: str, layout: str) -> None:
    same(fused(teacher, layout), fused(teacher, None))


# Hidden states, attention maps and relations of real models.


class Batch(NamedTuple):
    ids: Tensor
    position_ids: Tensor
    real: Tensor
    """bool `[rows, len]`"""
    sees: Tensor | None
    """bool `[rows, len, len]`: which tokens are of one document; None where a row holds one only"""
    counts: Tensor


def batches(layout: Layout) -> Iterator[Batch]:
    ids = torch.randint(1, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(5))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.cat([torch.arange(n) for n in LENGTHS])
    for rows in layout:
        tokens = torch.tensor(rows)
        real, at = tokens >= 0, tokens.clamp(min=0)
        which = document[at].masked_fill(~real, -1)
        sees = None
        if any(len(set(row[row >= 0].tolist())) > 1 for row in which):
            sees = (which[:, :, None] == which[:, None, :]) & real[:, :, None]
        yield Batch(
            ids[at].masked_fill(~real, 0), place[at].masked_fill(~real, 0), real, sees, COUNTS[at] & real
        )


class Pair(nn.Module):
    """Student and teacher of different depth and width, and what is learned to match them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.student, self.teacher = self.llama(2, 16), self.llama(4, 24)
        self.projections = Projections(map_layers(2, 4), 16, 24)
        self.hint = Hint(1, 2, 16, 24)
        self.double()

    @staticmethod
    def llama(layers: int, width: int) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
        )
        return LlamaForCausalLM(config)

    def states(self, model: LlamaForCausalLM, batch: Batch) -> tuple[tuple[Tensor, ...], Any]:
        """All hidden states, and what the last block's attention computed."""
        mask = batch.real.long()
        if batch.sees is not None:
            allowed = batch.sees.tril() | torch.eye(batch.sees.shape[1], dtype=torch.bool)
            mask = torch.zeros(allowed.shape).double().masked_fill(~allowed, -1e300)[:, None]
        with capture_attention({1: model.model.layers[-1].self_attn}) as caught:
            out = model.model(
                input_ids=batch.ids,
                attention_mask=mask,
                position_ids=batch.position_ids,
                output_hidden_states=True,
                use_cache=False,
            )
        return out.hidden_states, caught[1]

    def values(self, name: str, batch: Batch) -> Tensor:
        """One value a token of the loss by this name."""
        ours, mine = self.states(self.student, batch)
        with torch.no_grad():
            theirs, yours = self.states(self.teacher, batch)
        seen = batch.real if batch.sees is None else batch.sees
        maps = attention_maps(mine.query, mine.key, mask=seen, scale=mine.scale)
        their_maps = attention_maps(yours.query, yours.key, mask=seen, scale=yours.scale)
        projected = {m: self.projections(m, ours[m]) for m in (1, 2)}
        relation = partial(relation_loss, relation_heads=4, mask=seen)
        losses: dict[str, Callable[[], Tensor]] = {
            "hidden mse": lambda: hidden_state_loss(projected[2], theirs[4], mask=batch.real),
            "hidden cosine": lambda: hidden_state_loss(projected[1], theirs[2], kind="cosine"),
            "hint": lambda: self.hint(ours[1], theirs[2], mask=batch.real),
            "attention kl": lambda: attention_loss(maps, their_maps),
            "attention mse": lambda: attention_loss(maps, their_maps, kind="mse"),
            "attention, unequal heads": lambda: attention_loss(maps, their_maps[:, :3]),
            "query relations": lambda: relation(mine.query, yours.query),
            "key relations": lambda: relation(mine.key, yours.key, causal=True),
            "value relations": lambda: relation(mine.value, yours.value, causal=True),
            "weighted components": lambda: weighted_components(
                {(1, "hidden"): losses["hidden mse"](), (2, "attention"): losses["attention kl"]()},
                MatchWeights(attention=2.0, layers={1: 0.5}),
            ),
        }
        return losses[name]()


MATCHES = (
    "hidden mse",
    "hidden cosine",
    "hint",
    "attention kl",
    "attention mse",
    "attention, unequal heads",
    "query relations",
    "key relations",
    "value relations",
    "weighted components",
)


@cache
def matched(name: str, layout: str | None) -> dict[str, Tensor]:
    pair, total = Pair(), torch.zeros((), dtype=torch.float64)
    for batch in batches(ALONE if layout is None else LAYOUTS[layout]):
        loss = reduce(pair.values(name, batch), batch.counts, COUNT)
        loss.backward()
        total += loss.detach()
    grads = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
    assert not any(n.startswith("teacher") for n in grads)
    return {"loss": total, **grads}


@pytest.mark.parametrize("name", MATCHES)
@every_layout
def test_matching_losses_of_real_models_do_not_see_how_documents_are_laid_out(name: str, layout: str) -> None:
    same(matched(name, layout), matched(name, None))


# Other tokenizers.

OURS = [b"a", b"b", b"ab", b"abc", b"c", b"ca", b"x", b"yy"]
THEIRS = [b"c", b"b", b"a", b"bc", b"ca", b"z", b"abcab"]
# Documents as (student ids, teacher ids, runs): abc|a|b|c, ca|ab and abcab|c.
TEXTS: list[tuple[list[int], list[int], list[Aligned]]] = [
    ([3, 0, 1, 4], [2, 3, 2, 1, 0], [Aligned((0,), (0, 1)), Aligned((1,), (2,)), Aligned((2,), (3,)), Aligned((3,), (4,))]),
    ([5, 2], [4, 2, 1], [Aligned((0,), (0,)), Aligned((1,), (1, 2))]),
    ([3, 2, 4], [6, 0], [Aligned((0, 1), (0,)), Aligned((2,), (1,))]),
]  # fmt: skip
RUNS = sum(len(runs) for _, _, runs in TEXTS)


@cache
def across(name: str, layout: str) -> dict[str, Tensor]:
    """Rows of several texts, with NaN between them and another number of padding places on either side."""
    g = torch.Generator().manual_seed(1)
    student, teacher = (
        [torch.randn(len(text[side]), width, generator=g, dtype=torch.float64) for text in TEXTS]
        for side, width in ((0, len(OURS)), (1, len(THEIRS)))
    )
    for x in student:
        x.requires_grad_()
    rows = {"alone": [[0], [1], [2]], "padded": [[0], [1], [2]], "packed": [[2, 0, 1]], "both": [[1, 2], [0]]}
    pads = {"alone": (0, 0), "packed": (0, 0), "padded": (3, 1), "both": (1, 2)}[layout]
    total = torch.zeros((), dtype=torch.float64)
    for row in rows[layout]:
        logits: tuple[list[Tensor], list[Tensor]] = ([], [])
        ids: tuple[list[int], list[int]] = ([], [])
        runs: list[Aligned] = []
        for text in row:
            for side, (pad, sources) in enumerate(zip(pads, (student, teacher), strict=True)):
                logits[side].append(torch.full((pad, sources[text].shape[1]), math.nan).double())
                logits[side].append(sources[text])
                ids[side].extend([0] * pad)
            at = len(ids[0]), len(ids[1])
            for side in (0, 1):
                ids[side].extend(TEXTS[text][side])
            runs += [
                Aligned(*(tuple(i + start for i in part) for part, start in zip(run, at, strict=True)))
                for run in TEXTS[text][2]
            ]
        s, t = (torch.cat(side) for side in logits)
        starts = torch.tensor([run.student[0] for run in runs])
        if name == "ULD":
            values = uld_loss(s[starts], t[[run.teacher[0] for run in runs]], 1.5)
        else:
            values = span_aligned_loss(
                s, t, *map(torch.tensor, ids), runs, shared_tokens(OURS, THEIRS), temperature=1.5
            )[starts]
        loss = reduce(values, torch.ones_like(starts, dtype=torch.bool), RUNS)
        loss.backward()
        total += loss.detach()
    return {"loss": total, **{f"text {i}": x.grad for i, x in enumerate(student)}}


@pytest.mark.parametrize("name", ["ULD", "span-aligned"])
@pytest.mark.parametrize("layout", ["padded", "packed", "both"])
def test_losses_across_tokenizers_do_not_see_how_texts_are_laid_out(name: str, layout: str) -> None:
    same(across(name, layout), across(name, "alone"))


# Classifiers.


@pytest.mark.parametrize("name", ["one label", "several labels", "patience"])
@pytest.mark.parametrize("cuts", [(6,), (1, 5), (2, 2, 2)])
def test_classifier_losses_add_up_over_micro_batches(name: str, cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3, 4).double(), torch.randn(6, 3, 4).double()
    labels, several = torch.randint(0, 4, (6,)), torch.rand(6, 4).round()

    def values(x: Tensor, rows: slice) -> Tensor:
        return {
            "one label": lambda: classifier_loss(x[rows, 0], teacher[rows, 0], labels[rows]),
            "several labels": lambda: classifier_loss(
                x[rows, 0], teacher[rows, 0], several[rows], multi_label=True
            ),
            "patience": lambda: patience_loss(x[rows], teacher[rows]),
        }[name]()

    def step(sizes: tuple[int, ...]) -> dict[str, Tensor]:
        x, total = student.clone().requires_grad_(), torch.zeros(()).double()
        for start, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
            found = values(x, slice(start, start + size))
            loss = reduce(found, torch.ones_like(found, dtype=torch.bool), 6)
            loss.backward()
            total += loss.detach()
        return {"loss": total, "states": x.grad}

    same(step(cuts), step((1,) * 6))
