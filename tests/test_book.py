"""A lesson book gives back what was put in, survives kills, and says what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.signals import Book, BookHeader, Row, Signals, capture, row_key, token_keys

VOCAB = 500
HEADER = BookHeader(
    tokenizer="tok",
    template="tpl",
    vocab=VOCAB,
    temperature=1.0,
    kind="head+draws",
    budget=24,
    teacher="tiny",
    shard_tokens=100,
)


def lesson(number: int, header: BookHeader = HEADER) -> tuple[Tensor, Tensor, Signals]:
    """A made-up row: tokens, mask, and the signals of a made-up teacher, all following from its number."""
    g = torch.Generator().manual_seed(number)
    length = int(torch.randint(2, 40, (1,), generator=g))
    tokens = torch.randint(0, header.vocab, (length,), generator=g)
    mask = torch.rand(length, generator=g) > 0.3
    mask[0] = False
    places = mask.nonzero().squeeze(1)
    logits = torch.randn(len(places), header.vocab, generator=g) * 3
    keys = token_keys(row_key(header.tokenizer, tokens, mask), places)
    signals = capture(
        logits, keys=keys, temperature=header.temperature, budget=header.budget, kind=header.kind
    )
    return tokens, mask, signals


def write(folder: Path, numbers: range, header: BookHeader = HEADER) -> list[str]:
    with Book.create(folder, header) as book:
        return [book.append(*lesson(n, header)) for n in numbers]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_row(row: Row, number: int, header: BookHeader = HEADER) -> None:
    tokens, mask, signals = lesson(number, header)
    assert row.token_ids.equal(tokens.int())
    assert row.loss_mask.equal(mask)
    for name in (*signals.entry_fields, *signals.token_fields, "offsets"):
        assert getattr(row.targets, name).equal(getattr(signals, name)), name
    assert row.targets.temperature == header.temperature


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder with a book of forty rows in several shards."""
    write(tmp_path / "book", range(40))
    return tmp_path / "book"


@pytest.mark.parametrize("kind", ["head+draws", "top-k"])
def test_rows_come_back_as_they_were_captured_in_any_order(tmp_path: Path, kind: str) -> None:
    header = replace(HEADER, kind=kind, temperature=2.0)
    keys = write(tmp_path, range(40), header)
    book = Book.open(tmp_path, tokenizer="tok", template="tpl", vocab=VOCAB, temperature=2.0)
    assert len(book) == len(set(keys)) == 40
    assert list(book.keys()) == keys
    assert len(list(tmp_path.glob("shard-*"))) > 3
    order = random.Random(0).sample(range(40), 40)
    for number, row in zip(order, book.read([keys[n] for n in order]), strict=True):
        assert_row(row, number, header)
    assert book.signals == sum(lesson(n, header)[2].tokens for n in range(40))
    book.verify()


@given(
    vocab=st.integers(2, 300_000),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_vocabulary_length_and_mask_round_trips(
    tmp_path_factory: pytest.TempPathFactory, vocab: int, lengths: list[int], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    folder = tmp_path_factory.mktemp("book")
    rows = []
    with Book.create(folder, replace(HEADER, vocab=vocab)) as book:
        for length in lengths:
            tokens = torch.randint(0, vocab, (length,), generator=g)
            mask = torch.rand(length, generator=g) > 0.5
            mask[:1] = False
            count = int(mask.sum())
            signals = capture(
                torch.randn(count, vocab, generator=g) if count else torch.zeros(0, vocab),
                keys=torch.arange(count),
                budget=24,
            )
            rows.append((book.append(tokens, mask, signals), tokens, mask, signals))
    reader = Book.open(folder)
    for key, tokens, mask, signals in rows:
        row = reader.row(key)
        assert row.token_ids.equal(tokens.int())
        assert row.loss_mask.equal(mask)
        if key not in [k for k, *_ in rows[:-1]]:
            assert row.targets.ids.equal(signals.ids)
            assert row.targets.weights.equal(signals.weights)


def test_a_key_is_the_content_and_nothing_else() -> None:
    tokens, mask = [5, 6, 7], [False, True, True]
    key = row_key("tok", tokens, mask)
    assert len(key) == 32
    assert key == row_key("tok", torch.tensor(tokens), torch.tensor(mask))
    others = [
        row_key("tok2", tokens, mask),
        row_key("tok", [5, 6, 8], mask),
        row_key("tok", tokens, [False, True, False]),
        row_key("tok", [*tokens, 0], [*mask, False]),
    ]
    assert len({key, *others}) == 5


def test_a_row_the_book_lacks_is_named_not_guessed(book: Path) -> None:
    with pytest.raises(BookError, match="holds no signals for this row"):
        Book.open(book).row("0" * 32)


def test_a_row_appended_twice_is_kept_once(tmp_path: Path) -> None:
    with Book.create(tmp_path, HEADER) as book:
        assert book.append(*lesson(1)) == book.append(*lesson(1))
        assert len(book) == 1
    assert len(Book.create(tmp_path, HEADER)) == 1


def test_rows_can_be_read_before_their_shard_is_written(tmp_path: Path) -> None:
    book = Book.create(tmp_path, HEADER)
    keys = [book.append(*lesson(n)) for n in range(30)]
    for number, key in enumerate(keys):
        assert_row(book.row(key), number)


def test_a_book_travels_to_other_processes_without_its_maps(book: Path) -> None:
    reader = Book.open(book)
    key = next(reader.keys())
    assert len(pickle.dumps(reader)) < sum(map(len, files(book).values()))
    assert_row(pickle.loads(pickle.dumps(reader)).row(key), 0)


def test_bytes_on_disk_are_what_the_signals_say(tmp_path: Path) -> None:
    header = replace(HEADER, shard_tokens=1 << 20, budget=36)
    g = torch.Generator().manual_seed(0)
    tokens = signals = 0
    said = 0.0
    with Book.create(tmp_path, header) as book:
        for _ in range(20):
            ids = torch.randint(0, VOCAB, (300,), generator=g)
            mask = torch.arange(300) > 0
            logits = torch.randn(299, VOCAB, generator=g) * 6  # a sure teacher
            got = capture(logits, keys=torch.randint(0, 1 << 60, (299,), generator=g), budget=36)
            book.append(ids, mask, got)
            tokens, signals = tokens + 300, signals + got.tokens
            said += got.bytes_per_token(VOCAB) * got.tokens
    on_disk = next(tmp_path.glob("shard-*")).stat().st_size
    assert abs(on_disk - tokens * (9 + 1) / 8 - said) < 0.03 * said  # ids take 9 bits, the mask one
    assert on_disk / signals < 36


# Kills.


@pytest.mark.parametrize("stop", [1, 13, 27, 39])
@pytest.mark.parametrize("clean", [True, False])
def test_resuming_gives_the_same_files_as_never_stopping(tmp_path: Path, stop: int, clean: bool) -> None:
    write(tmp_path / "whole", range(40))
    first = Book.create(tmp_path / "resumed", HEADER)
    for n in range(stop):
        first.append(*lesson(n))
    if clean:
        first.close()
    del first  # a killed process lets go of its lock
    (tmp_path / "resumed" / ".shard-00002.safetensors.partial").write_bytes(b"half")
    with Book.create(tmp_path / "resumed", HEADER) as second:
        assert len(second) == stop if clean else len(second) <= stop
        for n in range(40):
            tokens, mask, signals = lesson(n)
            if not second.has(second.key(tokens, mask)):
                second.append(tokens, mask, signals)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_writer_killed_at_any_instant_loses_only_rows_of_the_open_shard(tmp_path: Path) -> None:
    """A real process, killed for real, again and again, until the book is whole."""
    write(tmp_path / "whole", range(60))
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "from tests.test_book import Book, HEADER, lesson\n"
        "print('ready', flush=True)\n"
        "with Book.create(pathlib.Path(sys.argv[1]), HEADER) as book:\n"
        "    for n in range(60): book.append(*lesson(n))\n"
    )
    root = str(Path(__file__).parents[1])
    for patience in (0.02, 0.05, None):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "killed"), root],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        process.stdout.readline()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert process.returncode == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_missing_or_half_written_index_line_is_repaired(book: Path) -> None:
    before = files(book)
    lines = (book / "index.jsonl").read_text().splitlines()
    for text in ("\n".join(lines[:-1]) + "\n", "\n".join(lines)[:-20], ""):
        (book / "index.jsonl").write_text(text)
        with pytest.raises(BookError, match=r"no checksum|not as they were"):
            Book.open(book).verify()
        with Book.create(book, HEADER) as again:
            assert len(again) == 40
        assert files(book) == before


def test_a_shard_that_is_gone_is_missed_by_readers_and_written_again(book: Path) -> None:
    before = files(book)
    (book / "shard-00001.safetensors").unlink()
    with pytest.raises(BookError, match=r"missing[\s\S]*shard-00001"):
        Book.open(book)
    write(book, range(40))
    assert len(Book.open(book)) == 40
    Book.open(book).verify()
    assert files(book)["shard-00000.safetensors"] == before["shard-00000.safetensors"]


# Damage.


def test_a_flipped_byte_anywhere_is_found_by_verify(book: Path) -> None:
    shard = book / "shard-00001.safetensors"
    good = shard.read_bytes()
    for place in [*random.Random(1).sample(range(len(good)), 40), 0, 9, len(good) - 1]:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        shard.write_bytes(bad)
        with pytest.raises(BookError) as fault:
            Book.open(book).verify()
        assert "shard-00001.safetensors" in str(fault.value)
    shard.write_bytes(good)
    Book.open(book).verify()


@pytest.mark.parametrize("keep", [0, 5, 60, 400, -1])
def test_a_truncated_shard_is_refused_when_the_book_is_opened(book: Path, keep: int) -> None:
    shard = book / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    for use in (lambda: Book.open(book), lambda: Book.create(book, HEADER)):
        with pytest.raises(BookError, match=r"shard-00001\.safetensors[\s\S]*delete the file and run again"):
            use()


# What does not fit.


def test_another_temperature_is_refused_in_words(book: Path) -> None:
    with pytest.raises(BookError) as fault:
        Book.open(book, temperature=4.0)
    assert "this book was captured at temperature 1.0, the recipe trains at 4.0" in str(fault.value)
    assert "set distil.temperature to 1.0" in str(fault.value)


@pytest.mark.parametrize("name", ["tokenizer", "template"])
def test_another_tokenizer_or_template_is_refused(book: Path, name: str) -> None:
    with pytest.raises(BookError, match=f"another .*{name}"):
        Book.open(book, **{name: "other"})
    with pytest.raises(BookError, match=f"another .*{name}"):
        Book.create(book, replace(HEADER, **{name: "other"}))


def test_what_is_no_book_is_refused(tmp_path: Path, book: Path) -> None:
    with pytest.raises(BookError, match="no lesson book"):
        Book.open(tmp_path / "nowhere")
    header = json.loads((book / "header.json").read_text())
    for text, words in (
        ("{", "cannot be read"),
        (json.dumps({**header, "format": 99}), "format 99"),
        (json.dumps({**header, "kind": "guess"}), "cannot have this header"),
    ):
        (book / "header.json").write_text(text)
        with pytest.raises(BookError, match=words):
            Book.open(book)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokens, mask, signals = lesson(3)
    book = Book.create(tmp_path, HEADER)
    wrong_mask = mask.clone()
    wrong_mask[0] = True
    other = replace(HEADER, temperature=2.0)
    for row, words in (
        ((tokens, wrong_mask, signals), "nothing comes before"),
        ((tokens, mask, signals.select(slice(1, None))), "one a selected token"),
        ((tokens, mask[1:], signals), "mask"),
        ((tokens + VOCAB, mask, signals), "ids below 500"),
        ((tokens - VOCAB, mask, signals), "negative"),
        ((tokens, mask, lesson(3, other)[2]), "temperature 2.0"),
        ((tokens, mask, lesson(3, replace(HEADER, kind="top-k"))[2]), "kind"),
    ):
        with pytest.raises(BookError, match=words):
            book.append(*row)
    assert len(book) == 0


def test_the_plain_torch_example_trains_from_a_book_and_its_kl_falls() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "examples/plain_torch_loop.py"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    values = [float(line.split()[3]) for line in done.stdout.splitlines()]
    assert len(values) == 6
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.6 * values[0]
