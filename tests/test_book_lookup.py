"""A book finds its rows through a file that only saves time: without it, or with a wrong one, it reads the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from stillroom.contracts.errors import BookError
from stillroom.signals import Book, lookup
from stillroom.signals.lookup import LOOKUP, Lookup
from tests.test_book import HEADER, assert_row, files, lesson, write


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder with a book of thirty rows in several shards."""
    write(tmp_path / "book", range(30))
    return tmp_path / "book"


def opened(reader: Book) -> set[str]:
    return set(reader._shards)


def assert_whole(folder: Path, rows: int = 30) -> None:
    reader = Book.open(folder)
    assert len(reader) == rows
    for number in random.Random(rows).sample(range(rows), rows):
        tokens, mask, _ = lesson(number)
        assert_row(reader.row(reader.key(tokens, mask)), number)
    assert not reader.has("0" * 32)


def test_opening_a_book_opens_no_shard_and_a_row_only_its_own(book: Path) -> None:
    reader = Book.open(book)
    assert len(reader) == 30
    assert reader.signals
    assert opened(reader) == set()
    tokens, mask, _ = lesson(7)
    reader.row(reader.key(tokens, mask))
    assert len(opened(reader)) == 1
    assert reader.has(reader.key(tokens, mask))
    assert not reader.has("f" * 32)
    assert len(opened(reader)) == 1


def test_the_file_names_every_row_and_follows_from_the_shards(book: Path) -> None:
    before = (book / LOOKUP).read_bytes()
    (book / LOOKUP).unlink()
    assert_whole(book)
    Book.open(book).verify()
    Book.create(book, HEADER).close()
    assert (book / LOOKUP).read_bytes() == before


@pytest.mark.parametrize("place", [3, 20, 200, -100, -30, -3])
def test_a_flipped_byte_of_the_file_loses_no_row_and_is_named_by_verify(book: Path, place: int) -> None:
    path = book / LOOKUP
    good = path.read_bytes()
    for bit in (0, 3, 7):
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        assert_whole(book)
        with pytest.raises(BookError, match="lookup"):
            Book.open(book).verify()


def test_every_entry_of_a_damaged_file_is_found_out(book: Path) -> None:
    """All entries swapped, zeroed or pointing past the ends: no row is lost, none is mistaken for another."""
    path = book / LOOKUP
    good = path.read_bytes()
    entries = 16 * 30
    for made in (bytes(entries), random.Random(1).randbytes(entries), b"\xff" * entries):
        path.write_bytes(good[: -16 - entries] + made + good[-16:])
        assert_whole(book)


@pytest.mark.parametrize("keep", [0, 5, 60, 300, -1])
def test_a_truncated_file_is_done_without_and_written_again(book: Path, keep: int) -> None:
    before = files(book)
    (book / LOOKUP).write_bytes(before[LOOKUP][:keep])
    assert_whole(book)
    Book.create(book, HEADER).close()
    assert files(book) == before


def test_rows_written_after_the_file_are_found(book: Path) -> None:
    old = (book / LOOKUP).read_bytes()
    write(book, range(30, 60))
    new = (book / LOOKUP).read_bytes()
    for data in (old, new):
        (book / LOOKUP).write_bytes(data)
        assert_whole(book, 60)


def test_a_reader_follows_a_book_that_is_being_written(book: Path) -> None:
    with Book.create(book, HEADER) as writer:
        for number in range(30, 50):
            writer.append(*lesson(number))
        reader = Book.open(book)
        keys = list(reader)
        assert len(keys) == len(reader) >= 30
        for key in keys:
            reader.row(key)
        assert all(writer.has(key) for key in keys)
    assert_whole(book, 50)


def test_a_gap_that_a_lost_shard_left_is_filled_and_everything_found(book: Path) -> None:
    (book / "shard-00001.safetensors").unlink()
    with Book.create(book, HEADER) as writer:
        for number in range(30):
            writer.append(*lesson(number))
        keys = list(writer)
        assert all(writer.has(key) for key in keys)
    assert_whole(book)


def test_the_file_is_renewed_while_a_long_book_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_YOUNG", 8)
    monkeypatch.setattr(lookup, "_PIECE", 5)
    with Book.create(tmp_path, HEADER) as writer:
        sizes = set()
        for number in range(60):
            writer.append(*lesson(number))
            if (tmp_path / LOOKUP).exists():
                sizes.add((tmp_path / LOOKUP).stat().st_size)
            assert sum(map(len, writer._lookup()._young)) <= 8 + 20
    assert len(sizes) >= 3
    assert_whole(tmp_path, 60)
    Book.open(tmp_path).verify()


def test_entries_of_many_shards_are_merged_in_order_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_PIECE", 100)
    numbers = np.random.default_rng(0)
    shards = [numbers.integers(0, 256, (rows, 16), np.uint8) for rows in (700, 1, 0, 2000, 333)]
    shards[3][5] = shards[0][6]  # keys that begin alike, in two shards and within one
    shards[3][5, 15] ^= 1
    shards[3][9, :8] = shards[3][5, :8]
    found = Lookup(tmp_path, [f"{number:032x}" for number in range(5)], shards.__getitem__)
    for _ in range(2):
        for shard, keys in enumerate(shards):
            for row, key in enumerate(keys[:: max(1, len(keys) // 50)]):
                row *= max(1, len(keys) // 50)
                assert (shard, row) in found.candidates(bytes(key))
        assert list(found.candidates(bytes(shards[3][9]))) == [(0, 6), (3, 5), (3, 9)]
        found.save()
        found = Lookup(tmp_path, [f"{number:032x}" for number in range(5)], shards.__getitem__)
        assert not found._young
        assert found.intact()
