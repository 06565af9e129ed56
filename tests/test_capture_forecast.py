"""What the plan says of a book before it is captured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.planning.capturing import capture_sums
from stillroom.signals import Book, capture
from tests.test_book import HEADER


@pytest.mark.parametrize("budget", [12, 36])
def test_a_book_is_no_larger_than_said_and_not_much_smaller_where_the_teacher_is_unsure(
    tmp_path: Path, budget: int
) -> None:
    header = replace(HEADER, budget=budget, shard_tokens=1 << 20)
    g = torch.Generator().manual_seed(0)
    with Book.create(tmp_path, header) as book:
        for _ in range(80):
            ids = torch.randint(0, header.vocab, (60,), generator=g)
            signals = capture(
                torch.randn(40, header.vocab, generator=g) / 10,
                keys=torch.randint(0, 1 << 60, (40,), generator=g),
                budget=budget,
            )
            book.append(ids, torch.arange(60) >= 20, signals)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    said = capture_sums(80, question_tokens=20, answer_tokens=40, vocab=header.vocab, bytes_per_token=budget)
    assert said.tokens == 80 * 60
    assert said.signals == 80 * 40
    assert 0.9 * said.bytes < size < said.bytes + 2000  # headers of the files


def test_seconds_are_known_only_where_the_teachers_size_and_the_machines_speed_are() -> None:
    lesson: dict[str, Any] = {
        "question_tokens": 100,
        "answer_tokens": 100,
        "vocab": 32_000,
        "bytes_per_token": 36,
    }
    assert capture_sums(1000, **lesson).seconds is None
    said = capture_sums(1000, **lesson, parameters=7_000_000_000, flops=1e14)
    assert said.seconds == pytest.approx(28.0)
