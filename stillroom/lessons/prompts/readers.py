"""Rows out of files, one at a time: JSONL, JSON lists, CSV, Parquet, text; packed, in folders, in zip files, on a hub."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import IO

from stillroom.contracts.errors import DataError, MissingExtra
from stillroom.lessons.prompts.json_rows import Row, json_rows, undamaged

HUB = "hub:"
_CHOICES = "ABCD"


def read_rows(name: str, path: Path, pattern: str | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a source with the place of each, for errors; lines of plain text are rows with `text`.

    Args:
        name: the source as the recipe names it; `hub:NAME`, `hub:NAME:CONFIG` or `hub:NAME:CONFIG:SPLIT` is a data set
            of a hub, read as a stream.
        path: the file or folder otherwise. The kind is told by the ending; .gz may follow it.
        pattern: of a folder or zip file, the files to read, such as `test/*.csv`.

    Raises:
        DataError: it is missing or malformed; the message names the place.
        MissingExtra: a library that this kind needs is not installed.
    """
    if name.startswith(HUB):
        yield from _hub(name)
        return
    for title, file in open_files(path, pattern):
        with file:
            yield from _reader(title)(file, title)


def is_known_kind(path: Path) -> bool:
    """Whether a file's name says what it is; others are read as plain text."""
    return path.is_dir() or path.suffix.lower() == ".zip" or _reader(path.name) is not _text


def open_files(path: Path, pattern: str | None = None) -> Iterator[tuple[str, IO[bytes]]]:
    """Every file of a file, folder or zip file, unpacked and opened, with its name; in the order of the names.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        inside = sorted(item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
        chosen = [item for item in inside if _fits(item.relative_to(path).as_posix(), pattern)]
        if not chosen:
            raise DataError(
                f"{path} has no such files", got=f"{len(inside)} files", expected=pattern or "some"
            )
        for item in chosen:
            yield from open_files(item)
    elif path.suffix.lower() == ".zip":
        try:
            pack = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a zip file", got=str(error)) from None
        with pack:
            names = [
                name for name in sorted(pack.namelist()) if not name.endswith("/") and _fits(name, pattern)
            ]
            if not names:
                raise DataError(f"{path} has no such files", expected=pattern or "files")
            for name in names:
                yield f"{path}/{name}", _unpacked(pack.open(name), name)
    else:
        try:
            yield str(path), _unpacked(path.open("rb"), path.name)
        except FileNotFoundError:
            raise DataError(
                f"{path} does not exist", do="check the path; those of a recipe are relative to it"
            ) from None


def _fits(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")


def _unpacked(file: IO[bytes], name: str) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file  # type: ignore[return-value]


def _reader(name: str) -> Callable[[IO[bytes], str], Iterator[tuple[str, Row]]]:
    suffix = PurePath(name.lower().removesuffix(".gz")).suffix
    if suffix in (".jsonl", ".json", ".ndjson"):
        return json_rows
    if suffix in (".csv", ".tsv"):
        return _csv
    return _parquet if suffix == ".parquet" else _text


def _csv(file: IO[bytes], where: str) -> Iterator[tuple[str, Row]]:
    """Rows under the header; a table of six columns that ends in A, B, C or D is MMLU's, which has no header."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    first = _unspoiled_line(text, where)
    if not first.strip():
        return
    delimiter = max(",;\t|", key=first.count)
    table = csv.reader(_again(first, text), delimiter=delimiter, strict=True)
    try:
        header = next(table)
        if len(header) == 6 and header[-1] in tuple(_CHOICES):
            names = ["question", *_CHOICES, "answer"]
            yield f"{where}, line 1", dict(zip(names, header, strict=True))
        else:
            names = [name.strip() for name in header]
        for cells in table:
            place = f"{where}, line {table.line_num}"
            if len(cells) != len(names):
                if not any(cells):
                    continue
                raise DataError(
                    f"{place} has {len(cells)} cells", expected=f"{len(names)}: {', '.join(names)}"
                )
            yield place, dict(zip(names, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a table", got=str(error), expected="CSV in UTF-8") from None


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _text(file: IO[bytes], where: str) -> Iterator[tuple[str, Row]]:
    for number, raw in undamaged(enumerate(file, 1), where):
        try:
            line = raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not text", got=str(error), expected="UTF-8 text or JSONL") from None
        if line.strip():
            yield f"{where}, line {number}", {"text": line}


def _unspoiled_line(text: IO[str], where: str) -> str:
    try:
        return text.readline()
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a table", got=str(error), expected="CSV in UTF-8") from None


def _parquet(file: IO[bytes], where: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(
            f"{where} is a Parquet file, and pyarrow is not installed", do="pip install 'stillroom[data]'"
        ) from None
    seekable = file if file.seekable() else io.BytesIO(file.read())
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(seekable).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{where}, row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where} is not a Parquet file", got=str(error).partition("\n")[0]) from None


def _hub(name: str) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f"{name} is a data set of a hub, and the library datasets is not installed",
            do="pip install 'stillroom[data]'",
        ) from None
    title, _, rest = name.removeprefix(HUB).partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(title, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except (
        Exception
    ) as error:  # unknown names and splits, no network: each of the library's layers has its own
        raise DataError(
            f"the data set {title} cannot be read from the hub",
            got=str(error).partition("\n")[0][:300],
            expected=f"{HUB}NAME, {HUB}NAME:CONFIG or {HUB}NAME:CONFIG:SPLIT",
            do="check the name and the connection, or give a file instead",
        ) from None
