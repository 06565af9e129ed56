"""Rows of JSON files: an object a line, or one list of objects of any length, read an item at a time."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from stillroom.contracts.errors import DataError

Row = dict[str, Any]
_BLOCK = 1 << 16
_LONGEST_ITEM = 64 << 20
"""Characters of a list's item after which it is none."""
_LIST = b"["
_BETWEEN = re.compile(r"[ \t\r\n,]*")


def json_rows(file: IO[bytes], where: str) -> Iterator[tuple[str, Row]]:
    """Lines of objects or one list of them, told by the first character."""
    lines = undamaged(enumerate(_lines_or_list(file), 1), where)
    for number, raw in lines:
        if raw == _LIST:
            yield from _json_list(file, where)
        elif raw.strip(b" \t\r\n\xef\xbb\xbf"):
            yield _json_row(raw, f"{where}, line {number}")


def _lines_or_list(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of a list only its opening bracket, since it may be one line of any length."""
    opened = b""
    while opened[-1:] != _LIST and not opened.strip(b" \t\r\n\xef\xbb\xbf"):
        character = file.read(1)
        if not character:
            return
        opened += character
        if character == b"\n":
            yield opened
            opened = b""
    if opened.endswith(_LIST):
        yield _LIST
        return
    yield opened + file.readline()
    yield from file


def _json_row(raw: bytes, where: str) -> tuple[str, Row]:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON",
            got=str(error),
            expected='one object a line, such as {"messages": [{"role": "user", "content": "..."}]}',
        ) from None
    return where, _object(row, where)


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", got=str(row)[:80], expected="{...}")
    return row


def _json_list(file: IO[bytes], where: str) -> Iterator[tuple[str, Row]]:
    """The items of a list whose bracket was read; in memory is one block, or one item where that is longer."""
    decoder, read = json.JSONDecoder(), io.TextIOWrapper(file, encoding="utf-8", errors="replace").read
    number, at, text = 0, 0, ""
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
        if text[at : at + 1] == "]":
            return
        place = f"{where}, item {number + 1}"
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            text, at = text[at:], 0
            # As much again as there is: a long item is not tried again at each block of it.
            more = _read(read, max(_BLOCK, len(text)), where) if len(text) < _LONGEST_ITEM else ""
            if not more:
                raise DataError(
                    f"{place} is not JSON", got=str(error)[:200], expected="a list of objects"
                ) from None
            text += more
            continue
        number += 1
        yield place, _object(item, place)


def _read(read: Callable[[int], str], size: int, where: str) -> str:
    try:
        return read(size)
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{where} is damaged", got=str(error), expected="a whole file") from None


def undamaged(lines: Iterator[tuple[int, bytes]], where: str) -> Iterator[tuple[int, bytes]]:
    """The lines; a packed file that is damaged is an error that names it."""
    try:
        yield from lines
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{where} is damaged", got=str(error), expected="a whole file") from None
