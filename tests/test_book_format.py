"""docs/lesson-books.md is enough to read a book: its own reader, in numpy alone, reads ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.signals import Book, row_key, token_keys
from stillroom.signals.counter import uniform
from tests.test_book import HEADER, lesson, write

PAGE = (Path(__file__).parents[1] / "docs" / "lesson-books.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def documented() -> dict[str, Callable[..., Any]]:
    """What the page's blocks define."""
    names: dict[str, Any] = {}
    for block in (block for block in BLOCKS if "stillroom" not in block):
        exec(compile(block, "docs/lesson-books.md", "exec"), names)
    return names


@pytest.mark.parametrize(
    "change", [{}, {"kind": "top-k"}, {"budget": 200}, {"budget": 9}, {"vocab": 2}, {"vocab": 70_000}]
)
def test_the_documented_reader_reads_our_books(
    tmp_path: Path, documented: dict[str, Callable[..., Any]], change: dict[str, Any]
) -> None:
    header = replace(HEADER, **change)
    keys = write(tmp_path, range(12), header)
    book = Book.open(tmp_path)
    rows = list(documented["read_book"](tmp_path))
    assert [key for key, *_ in rows] == list(dict.fromkeys(keys)) == list(book)
    for key, token_ids, mask, signals in rows:
        want = book.row(key)
        assert token_ids.tolist() == want.token_ids.tolist()
        assert mask.tolist() == want.loss_mask.tolist()
        assert len(signals) == want.targets.tokens
        for place, (ids, weights, tail, entropy) in enumerate(signals):
            one = want.targets.select(slice(place, place + 1))
            assert ids.tolist() == one.ids.tolist()
            np.testing.assert_allclose(weights, one.weights.numpy(), atol=1e-6)
            assert tail == pytest.approx(float(one.tail_mass), abs=1e-6)
            assert entropy == pytest.approx(float(one.entropy), abs=1e-6)


def test_the_documented_reader_refuses_a_flipped_byte(
    tmp_path: Path, documented: dict[str, Callable[..., Any]]
) -> None:
    write(tmp_path, range(12))
    shard = tmp_path / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-40] ^= 2
    shard.write_bytes(data)
    with pytest.raises(AssertionError, match="damaged row"):
        list(documented["read_book"](tmp_path))


def test_documented_keys_and_random_numbers_are_ours(documented: dict[str, Callable[..., Any]]) -> None:
    for number in range(5):
        tokens, mask, _ = lesson(number)
        key = row_key("tok", tokens, mask)
        assert documented["row_key"]("tok", tokens.tolist(), mask.tolist()) == key
        places = mask.nonzero().flatten()
        for counter in (0, 1, 7):
            ours = uniform(token_keys(key, places), torch.tensor(counter))
            theirs = [documented["uniform"](key, place, counter) for place in places.tolist()]
            assert ours.tolist() == theirs


def test_the_page_s_own_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "docs/lesson-books.md", "exec"), names)
    assert names["targets"].tokens == 2
    exec(compile(BLOCKS[1], "docs/lesson-books.md", "exec"), names)
    assert float(names["loss"]) > 0


def test_every_command_of_the_page_exists() -> None:
    from stillroom.cli import book_app

    shown = set(re.findall(r"^stillroom book (\w+)", PAGE, re.MULTILINE))
    assert shown == {
        command.callback.__name__ for command in book_app.registered_commands if command.callback
    }
