"""A student's head may be padded beyond the vocabulary: a book's bucket is no part of the padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillroom.losses import SparseTargets, forward_kl, fused_linear_divergence, sparse_forward_kl
from stillroom.signals import Book, BookHeader, capture, mix
from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate

VOCAB, PADDED, SIGNALS, WIDTH = 1000, 1024, 30, 16


def logits() -> Tensor:
    """A teacher's over its own vocabulary: flat enough for a bucket of some mass."""
    return torch.randn(SIGNALS, VOCAB, generator=torch.Generator().manual_seed(0))


def book(folder: Path, kind: str) -> Book:
    header = BookHeader("tok", "tpl", VOCAB, temperature=1.0, kind=kind, budget=24, teacher="t")
    ids = torch.arange(SIGNALS + 1)
    with Book.create(folder, header) as writer:
        writer.append(
            ids, ids > 0, capture(logits(), keys=torch.arange(SIGNALS), kind=kind, budget=header.budget)
        )
    return Book.open(folder)


def slope(values: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), by)[0]


@pytest.mark.parametrize("kind", ["top-k", "head+draws"])
def test_padding_columns_are_forbidden_as_under_the_whole_distribution(tmp_path: Path, kind: str) -> None:
    found = book(tmp_path, kind)
    student = torch.randn(SIGNALS, PADDED, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (key,) = found
    targets = found.row(key).targets
    dense = slope(forward_kl(student, logits()), student)[:, VOCAB:]
    assert (dense > 0).all()  # each step pushes them down
    for some in (targets, mix([found, found], [1, 1]).row(key).targets):
        assert some.vocab == VOCAB
        torch.testing.assert_close(slope(sparse_forward_kl(student, some), student)[:, VOCAB:], dense)
    if kind == "top-k":  # what would be without the book's word: mass of the bucket for the padding
        told = slope(sparse_forward_kl(student, replace(targets, vocab=None)), student)[:, VOCAB:]
        assert (told < 0.5 * dense).all()


def test_a_student_trained_from_a_bucket_gives_its_padding_ever_less(tmp_path: Path) -> None:
    found = book(tmp_path, "top-k")
    rows = [found.row(key) for key in found]
    targets = collate(
        [TrainingRow(row.token_ids.numpy(), row.loss_mask.numpy(), row.targets) for row in rows]
    )["targets"]
    told, untold = share_of_padding(targets), share_of_padding(replace(targets, vocab=None))
    assert told == sorted(told, reverse=True)
    assert told[-1] < 0.1 * told[0]
    assert untold[-1] > 0.5 * untold[0]  # what would be without the book's word


def share_of_padding(targets: SparseTargets) -> list[float]:
    """The mass that a student gives to its padding, step by step."""
    g = torch.Generator().manual_seed(2)
    hidden, head = torch.randn(SIGNALS, WIDTH, generator=g), torch.zeros(PADDED, WIDTH).requires_grad_()
    hidden[:, 0] = 4.0  # a bias, of all tokens alike
    shares = []
    for _ in range(40):
        shares.append(float((hidden @ head.T).softmax(-1)[:, VOCAB:].sum(-1).mean()))
        step = slope(fused_linear_divergence(hidden, head, targets).loss, head)
        head = (head.detach() - 20 * step).requires_grad_()
    return shares
