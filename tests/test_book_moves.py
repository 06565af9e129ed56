"""Books are joined and divided row by row, bytes as they are; the verbs say what a book holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stillroom.cli import app
from stillroom.contracts.errors import BookError, UserError
from stillroom.signals import Book
from tests.test_book import HEADER, assert_row, files, lesson, write

OTHER = replace(HEADER, teacher="other", budget=48)


def stillroom(*arguments: object) -> Result:
    """`stillroom book ...`; a fault that the command would leave with is raised."""
    return CliRunner().invoke(app, ["book", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books of twenty rows each, five of them in both."""
    folder = tmp_path_factory.mktemp("books")
    write(folder / "a", range(20))
    write(folder / "b", range(15, 35), OTHER)
    return folder


def test_a_merged_book_is_the_one_that_a_single_capture_writes(tmp_path: Path) -> None:
    write(tmp_path / "a", range(18))
    write(tmp_path / "b", range(12, 40))
    write(tmp_path / "whole", range(40))
    Book.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged").verify()
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_merging_names_all_teachers_and_keeps_a_key_once_from_the_first(books: Path, tmp_path: Path) -> None:
    merged = Book.merge([books / "a", books / "b"], tmp_path / "ab")
    assert merged.header == replace(HEADER, teacher="tiny + other", budget=48)
    assert len(merged) == 35
    for number, key in enumerate(merged):
        assert_row(merged.row(key), number, HEADER if number < 20 else OTHER)
    again = Book.merge([books / "a", books / "b"], tmp_path / "ab")  # as after a kill
    assert list(again) == list(merged)


@pytest.mark.parametrize(
    "change", [{"temperature": 2.0}, {"tokenizer": "x"}, {"kind": "top-k"}, {"vocab": 499}]
)
def test_books_whose_rows_mean_different_things_are_not_merged(
    books: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    write(tmp_path / "c", range(0), replace(HEADER, **change))
    with pytest.raises(BookError, match=f"captured|{next(iter(change))}"):
        Book.merge([books / "a", tmp_path / "c"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_row_is_not_carried_into_a_merged_book(tmp_path: Path) -> None:
    write(tmp_path / "a", range(20))
    shard = tmp_path / "a" / "shard-00001.safetensors"
    bad = bytearray(shard.read_bytes())
    bad[-5] ^= 1
    shard.write_bytes(bad)
    with pytest.raises(BookError, match="not as it was written"):
        Book.merge([tmp_path / "a"], tmp_path / "out")


@pytest.mark.parametrize("how", [{"share": 0.3}, {"rows": 7}])
def test_a_split_holds_every_row_on_one_side(books: Path, tmp_path: Path, how: dict[str, float]) -> None:
    whole = Book.open(books / "a")
    train, validation = whole.split(tmp_path / "t", tmp_path / "v", seed=3, **how)
    assert set(train).isdisjoint(validation)
    assert set(train) | set(validation) == set(whole)
    assert len(validation) == 7 if "rows" in how else 2 <= len(validation) <= 11
    for part in (train, validation):
        part.verify()
        for number, key in enumerate(whole):
            if part.has(key):
                assert_row(part.row(key), number)


def test_rows_keep_their_side_when_the_book_grows_and_another_seed_moves_them(tmp_path: Path) -> None:
    write(tmp_path / "small", range(25))
    write(tmp_path / "large", range(40))
    sides = {}
    for name, seed in (("small", 0), ("large", 0), ("small", 1)):
        part = Book.open(tmp_path / name).split(
            tmp_path / f"{name}{seed}t", tmp_path / f"{name}{seed}v", share=0.4, seed=seed
        )[1]
        sides[name, seed] = set(part)
    assert sides["small", 0] == sides["large", 0] & set(Book.open(tmp_path / "small"))
    assert sides["small", 0] != sides["small", 1]


def test_a_split_into_folders_of_another_split_is_refused(books: Path, tmp_path: Path) -> None:
    """Or rows of the old training side would be validated on."""
    book = Book.open(books / "a")
    book.split(tmp_path / "t", tmp_path / "v", rows=5)
    book.split(tmp_path / "t", tmp_path / "v", rows=5)  # the same one goes on
    with pytest.raises(BookError, match="do not belong to this side"):
        book.split(tmp_path / "t", tmp_path / "v", rows=5, seed=1)
    for rows in (0, 20, 99):
        with pytest.raises(BookError, match="a side of the split would be empty"):
            book.split(tmp_path / "x", tmp_path / "y", rows=rows)


# The verbs.


def test_show_says_what_a_book_holds_and_decodes_rows(books: Path) -> None:
    key = next(iter(Book.open(books / "a")))
    with pytest.raises(BookError, match="no signals for this row"):
        stillroom("show", books / "b", "--row", key)
    done = stillroom("show", books / "a", "--row", key)
    assert done.exit_code == 0, done.stderr
    for words in (
        "tiny",
        "tok, 500 tokens",
        "tpl",
        "head+draws at temperature 1",
        "budget 24",
        "20",
        "entropy",
    ):
        assert words in done.stdout
    _, mask, signals = lesson(0)
    shown = done.stdout[done.stdout.index(f"row {key}") :].splitlines()
    assert len(shown) == 3 + int(mask.sum())
    assert f"{int(signals.ids[0])} {float(signals.weights[0]):.4f}" in shown[3]
    assert f"{float(signals.entropy[0]):.3f}" in shown[3]


def test_verify_names_the_damaged_book_and_checks_the_others(books: Path, tmp_path: Path) -> None:
    write(tmp_path / "bad", range(20))
    shard = tmp_path / "bad" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = stillroom("verify", tmp_path / "bad", books / "a")
    assert done.exit_code == 2
    assert "shard-00000.safetensors" in done.stderr
    assert f"{books / 'a'}: 20 rows as they were written" in done.stdout


def test_merge_and_split_from_the_command_line(books: Path, tmp_path: Path) -> None:
    done = stillroom("merge", books / "a", books / "b", "--out", tmp_path / "ab")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'ab'}: 35 rows\n")
    into = ("--train", tmp_path / "t", "--validation", tmp_path / "v")
    with pytest.raises(UserError, match="either --share or --rows"):
        stillroom("split", tmp_path / "ab", *into)
    done = stillroom("split", tmp_path / "ab", *into, "--rows", 5)
    assert done.stdout == f"{tmp_path / 't'}: 30 rows\n{tmp_path / 'v'}: 5 rows\n"
