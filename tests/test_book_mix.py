"""Several teachers read as one: the targets are the weighted sum of theirs, and what cannot be mixed is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.losses import forward_kl, fused_linear_divergence, sparse_forward_kl
from stillroom.signals import Book, BookHeader, MixedRow, Row, capture, mix
from stillroom.signals.counter import mix as hashed
from stillroom.signals.mixture import mixed_row

VOCAB, LENGTH, ROWS = 400, 9, 6
HEADER = BookHeader("tok", "tpl", VOCAB, temperature=1.0, kind="head+draws", budget=24, teacher="a")


def teacher(number: int, row: int) -> Tensor:
    g = torch.Generator().manual_seed(1000 * number + row)
    return torch.randn(LENGTH - 1, VOCAB, generator=g) * 3


def write(folder: Path, number: int, rows: range = range(ROWS), header: BookHeader = HEADER) -> list[str]:
    mask = torch.arange(LENGTH) > 0
    keys = []
    with Book.create(folder, replace(header, teacher=f"teacher {number}")) as book:
        for row in rows:
            signals = capture(
                teacher(number, row),
                keys=hashed(torch.arange(LENGTH - 1) + 100 * row),
                kind=header.kind,
                budget=header.budget,
                temperature=header.temperature,
            )
            keys.append(book.append(torch.full((LENGTH,), row), mask, signals))
    return keys


def joined(
    parts: list[Tensor], weights: list[float], *, seeds: int = 1, budget: int = 24, kind: str = "head+draws"
) -> MixedRow:
    """A mixture of teachers with these logits `[vocab]`, each captured with many seeds: one position a seed."""
    tokens = torch.zeros(seeds + 1)
    rows = [
        Row(
            tokens.int(),
            torch.arange(seeds + 1) > 0,
            capture(
                logits.expand(seeds, -1),
                keys=hashed(torch.arange(seeds) + 10_000 * number),
                budget=budget,
                kind=kind,
            ),
        )
        for number, logits in enumerate(parts)
    ]
    return mixed_row(rows, weights, VOCAB)


def test_the_mixture_is_unbiased() -> None:
    a, b, seeds = teacher(0, 0)[0], teacher(1, 0)[0], 3000
    got = joined([a, b], [0.3, 0.7], seeds=seeds).targets
    dense = got.to_dense(VOCAB).double()
    want = 0.3 * a.double().softmax(-1) + 0.7 * b.double().softmax(-1)
    error = dense.std(0) / seeds**0.5
    assert ((dense.mean(0) - want).abs() < 5 * error + 1e-5).all()
    torch.testing.assert_close(dense.sum(-1), torch.ones(seeds).double(), rtol=0, atol=1e-5)


def test_an_id_that_both_teachers_name_comes_once(tmp_path: Path) -> None:
    keys = write(tmp_path / "a", 0)
    write(tmp_path / "b", 1)
    books = [Book.open(tmp_path / name) for name in "ab"]
    row = mix(books, [1, 1]).row(keys[2])
    for place in range(row.targets.tokens):
        ids = row.targets.select(slice(place, place + 1)).ids
        assert ids.unique().numel() == ids.numel()
    dense = [book.row(keys[2]).targets.to_dense(VOCAB) for book in books]
    torch.testing.assert_close(row.targets.to_dense(VOCAB), (dense[0] + dense[1]) / 2, rtol=0, atol=1e-6)


def test_the_value_is_the_weighted_mean_of_the_kls_and_its_gradient_that_of_the_mixture() -> None:
    """With every token kept, so that there is no noise: 60 tokens within the budget."""
    vocab = 60
    a, b = teacher(0, 0)[:1, :vocab], teacher(1, 0)[:1, :vocab]
    student = teacher(2, 0)[:1, :vocab].double().requires_grad_()
    seeds = 4000
    tokens = torch.arange(seeds + 1)
    rows = [
        Row(
            tokens.int(),
            tokens > 0,
            capture(x.expand(seeds, -1), keys=hashed(tokens[1:] + 9999 * n), budget=250),
        )
        for n, x in enumerate((a, b))
    ]
    targets = mixed_row(rows, [0.25, 0.75], vocab).targets
    values = sparse_forward_kl(student.expand(seeds, -1), targets)
    want = 0.25 * forward_kl(student, a.double()) + 0.75 * forward_kl(student, b.double())
    assert values.mean().item() == pytest.approx(want.item(), abs=2e-3)
    mixture = (0.25 * a.double().softmax(-1) + 0.75 * b.double().softmax(-1)).log()
    assert values.mean().item() > forward_kl(student, mixture).item()
    (got,) = torch.autograd.grad(values.mean(), student)
    (dense,) = torch.autograd.grad(forward_kl(student, mixture).sum(), student)
    torch.testing.assert_close(got, dense, rtol=0, atol=1e-3)


def test_top_k_is_mixed_exactly_over_what_all_teachers_list() -> None:
    a = teacher(0, 0)[0]
    b = a + 0.3 * teacher(1, 0)[0]
    seeds = 2000
    got = joined([a, b], [0.5, 0.5], seeds=seeds, budget=40, kind="top-k").targets
    p = (a.double().softmax(-1) + b.double().softmax(-1)) / 2
    common = sorted(set(a.topk(18).indices.tolist()) & set(b.topk(18).indices.tolist()))
    first = got.select(slice(0, 1))
    assert got.bucket
    assert set(first.ids.tolist()) <= set(a.topk(25).indices.tolist()) & set(b.topk(25).indices.tolist())
    assert set(common) <= set(a.topk(25).indices.tolist())
    ids = first.ids
    torch.testing.assert_close(got.to_dense(VOCAB).double().mean(0)[ids], p[ids], rtol=0, atol=2e-3)
    torch.testing.assert_close(got.tail_mass.double().mean(), 1 - p[ids].sum(), rtol=0, atol=2e-3)
    values = sparse_forward_kl(p.log().float().expand(seeds, -1), got)
    assert abs(float(values.mean())) < 2e-3  # a true KL: zero for the mixture itself


def test_weights_may_follow_the_row(tmp_path: Path) -> None:
    """A teacher of code for code; the other need not have read it."""
    keys = write(tmp_path / "a", 0)
    write(tmp_path / "b", 1, range(3))
    books = [Book.open(tmp_path / name) for name in "ab"]
    code = set(keys[3:])
    mixture = mix(books, lambda key: (1, 0) if key in code else (0, 1))
    assert sorted(mixture) == sorted(keys)
    for key in keys:
        source = books[0] if key in code else books[1]
        want = source.row(key)
        row = mixture.row(key)
        assert row.token_ids.equal(want.token_ids)
        assert row.loss_mask.equal(want.loss_mask)
        torch.testing.assert_close(row.targets.to_dense(VOCAB), want.targets.to_dense(VOCAB))
        torch.testing.assert_close(row.targets.entropy, want.targets.entropy)
    named = mix(books, {keys[0]: (1, 3)})
    assert list(named) == keys[:1]
    with pytest.raises(BookError, match="no weights for this row"):
        named.row(keys[1])
    assert [len(part) for part in map(list, (mix(books, [1, 1]), mix(books, [1, 0])))] == [3, 6]
    with pytest.raises(BookError, match="holds no signals for this row"):
        mix(books, [1, 1]).row(keys[4])


def test_a_mixture_trains_through_the_fused_loss(tmp_path: Path) -> None:
    keys = write(tmp_path / "a", 0)
    write(tmp_path / "b", 1)
    mixture = mix([Book.open(tmp_path / name) for name in "ab"], [0.5, 0.5])
    rows = mixture.read(keys)
    targets = type(rows[0].targets).cat([row.targets for row in rows])
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(targets.tokens, 8, generator=g).requires_grad_()
    head = torch.randn(VOCAB, 8, generator=g).requires_grad_()
    fused_linear_divergence(hidden, head, targets).loss.backward()
    assert head.grad is not None
    assert head.grad.isfinite().all()
    assert mixture.header.teacher == "teacher 0 + teacher 1"


@pytest.mark.parametrize(
    "change", [{"temperature": 2.0}, {"tokenizer": "x"}, {"kind": "top-k"}, {"template": "x"}]
)
def test_books_that_differ_are_not_mixed(tmp_path: Path, change: dict[str, object]) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 1, header=replace(HEADER, **change))
    with pytest.raises(BookError, match=f"another|captured|{next(iter(change))}"):
        mix([Book.open(tmp_path / name) for name in "ab"], [1, 1])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("inf")]])
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: list[float]) -> None:
    write(tmp_path / "a", 0)
    book = Book.open(tmp_path / "a")
    with pytest.raises(ValueError, match="weights must be 2 numbers"):
        mix([book, book], weights)
