"""Nothing damaged is trained on: flipped bytes are found when a row is read, writers and full disks leave books whole."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.contracts.errors import BookError, RunError, StorageFault
from stillroom.signals import Book, Row
from tests.test_book import HEADER, assert_row, files, lesson, write

ROOT = Path(__file__).parents[1]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    write(tmp_path / "book", range(20))
    return tmp_path / "book"


def refused(folder: Path, wanted: dict[str, Row]) -> int:
    """Read every row by the key of its own content; how many the book refuses. What it gives must be right."""
    try:
        reader = Book.open(folder)
    except BookError:
        return len(wanted)
    count = 0
    for key, want in wanted.items():
        try:
            row = reader.row(key)
        except BookError:
            count += 1
        else:
            assert row.token_ids.equal(want.token_ids)
            assert row.loss_mask.equal(want.loss_mask)
            assert row.targets.ids.equal(want.targets.ids)
            assert row.targets.weights.equal(want.targets.weights)
    return count


# Flipped bytes.


def test_a_flipped_byte_anywhere_in_a_shard_is_never_read_as_a_row(book: Path) -> None:
    wanted = {key: Book.open(book).row(key) for key in Book.open(book)}
    shard = book / "shard-00001.safetensors"
    good = shard.read_bytes()
    start = good.index(b"data_offsets")
    harmless = 0
    for place in {*random.Random(2).sample(range(len(good)), 150), 0, start, len(good) - 1}:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        shard.write_bytes(bad)
        harmless += refused(book, wanted) == 0
    # Only the padding of the file's own header may change without a row being touched.
    assert harmless <= 10


def test_every_flipped_bit_of_a_row_is_found_by_reading_that_row(book: Path) -> None:
    keys = list(Book.open(book).keys())
    shard = book / "shard-00000.safetensors"
    good = shard.read_bytes()
    row = Book.open(book)._bytes(keys[0])[0]
    begin = good.index(row.tobytes())
    for place in range(begin, begin + len(row), 7):
        for bit in range(0, 8, 3):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            shard.write_bytes(bad)
            reader = Book.open(book)
            with pytest.raises(BookError, match="not as it was written"):
                reader.row(keys[0])
            assert_row(reader.row(keys[1]), 1)


def test_rows_that_changed_places_are_found_too(book: Path) -> None:
    """Right bytes under another row's key: what a lookup by step number would train on."""
    shard = book / "shard-00000.safetensors"
    good = shard.read_bytes()
    first, second = (bytes.fromhex(key) for key in list(Book.open(book).keys())[:2])
    shard.write_bytes(good.replace(first, b"\0" * 16).replace(second, first).replace(b"\0" * 16, second))
    with pytest.raises(BookError, match="not as it was written"):
        Book.open(book).row(first.hex())


def test_a_flipped_byte_of_the_header_is_refused_or_changes_nothing(book: Path) -> None:
    path = book / "header.json"
    good = path.read_bytes()
    wanted = Book.open(book).header
    for place in range(len(good)):
        for bit in (0, 1, 4):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            try:
                assert Book.open(book).header == wanted
            except BookError:
                continue


def test_a_header_edited_by_hand_is_refused(book: Path) -> None:
    path = book / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 2.0}))
    with pytest.raises(BookError, match="cannot be read"):
        Book.open(book, temperature=2.0)


def test_a_repair_does_not_bless_a_damaged_shard(book: Path) -> None:
    """A killed writer's shard has no line yet; its rows are compared before it gets one."""
    shard = book / "shard-00001.safetensors"
    bad = bytearray(shard.read_bytes())
    bad[-3] ^= 4
    shard.write_bytes(bad)
    (book / "index.jsonl").write_text("")
    with pytest.raises(BookError, match="not as it was written"):
        Book.create(book, HEADER)


def test_a_book_of_an_older_format_is_refused_with_words(book: Path) -> None:
    path = book / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(BookError, match=r"format 1, this version reads 2[\s\S]*capture again"):
        Book.open(book)


# Writers.


def test_a_second_writer_is_refused_and_readers_are_not(book: Path) -> None:
    with Book.create(book, HEADER) as first:
        with pytest.raises(RunError, match=r"another program is writing the lesson book[\s\S]*one writer"):
            Book.create(book, HEADER)
        assert len(Book.open(book)) > 0
        first.append(*lesson(50))
    with Book.create(book, HEADER) as second:
        assert len(second) == 21


def test_the_lock_of_a_killed_writer_is_gone_with_it(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time; sys.path[:0] = sys.argv[2:]\n"
        "from tests.test_book import Book, HEADER, lesson\n"
        "book = Book.create(pathlib.Path(sys.argv[1]), HEADER)\n"
        "for n in range(12): book.append(*lesson(n))\n"
        "print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "book"), str(ROOT)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    with pytest.raises(RunError, match="another program"):
        Book.create(tmp_path / "book", HEADER)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    write(tmp_path / "book", range(20))
    write(tmp_path / "whole", range(20))
    assert files(tmp_path / "book") == files(tmp_path / "whole")


def test_a_writer_lets_go_when_its_block_fails_or_its_book_is_refused(book: Path) -> None:
    with pytest.raises(ZeroDivisionError), Book.create(book, HEADER):
        raise ZeroDivisionError
    with pytest.raises(BookError, match="another tokenizer"):
        Book.create(book, replace(HEADER, tokenizer="other"))
    Book.create(book, HEADER).close()


def test_a_closed_book_and_a_copy_of_a_writer_only_read(tmp_path: Path) -> None:
    writer = Book.create(tmp_path, HEADER)
    key = writer.append(*lesson(1))
    copy = pickle.loads(pickle.dumps(writer))
    writer.close()
    for reader in (writer, copy):
        assert_row(reader.row(key), 1)
        with pytest.raises(ValueError, match="opened for reading, or is closed"):
            reader.append(*lesson(2))


# Full disks.


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write a file beyond this size, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill(writer: Book, numbers: range) -> None:
    for n in numbers:
        writer.append(*lesson(n))
    writer.close()


def test_a_full_disk_leaves_the_book_whole_and_the_writer_goes_on(book: Path, tmp_path: Path) -> None:
    """Whichever file does not fit: a shard, or the index after it."""
    write(tmp_path / "whole", range(40))
    index = (book / "index.jsonl").stat().st_size
    for room in (0, index // 2, index + 30, 1000):
        writer = Book.create(book, HEADER)
        with largest_file(room), pytest.raises(StorageFault, match="disk is full"):
            fill(writer, range(20, 40))
        assert len(Book.open(book)) >= 16  # all but the shard that was being filled
        with Book.open(book) as reader:
            for key in reader:
                reader.row(key)
        del writer
    fill(Book.create(book, HEADER), range(20, 40))
    assert files(book) == files(tmp_path / "whole")


def test_an_append_refused_by_a_full_disk_can_be_repeated(tmp_path: Path) -> None:
    writer = Book.create(tmp_path / "book", HEADER)
    for n in range(30):
        with largest_file(0 if n % 3 == 0 else 1 << 30), suppress(StorageFault):
            writer.append(*lesson(n))
    writer.close()
    write(tmp_path / "whole", range(30))
    assert set(Book.open(tmp_path / "book")) == set(Book.open(tmp_path / "whole"))
    Book.open(tmp_path / "book").verify()
