"""Reading and writing that survives a kill: synced JSONL lines, atomic files, digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stillroom.contracts.errors import DataError, StorageFault

_WHOLE = 64 << 20
"""Files up to this size are hashed whole; larger ones by size, time and both ends."""
_PARTIAL = ".partial"


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden write into a StorageFault that names the path."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # Libraries that write in native code report a full disk in errors of their own.
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left on device" in str(error):
            raise StorageFault(
                f"the disk is full while writing {path}",
                got=str(error),
                do="free some space and run the same command again: it goes on where it stopped",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise StorageFault(
                f"{path} cannot be written",
                got=str(error),
                do="choose a folder that you may write to with --runs",
            ) from error
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears whole or not at all: written under a temporary name, synced, renamed."""
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_partial(folder: Path) -> None:
    """Take away what killed writers of `whole_file` left in a folder."""
    for path in folder.glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; file systems that cannot sync a folder do without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing."""
    with whole_file(path) as file:
        file.write(_encode(content) if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically, readable by people."""
    write_atomically(path, _encode(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def _encode(text: str) -> bytes:
    """UTF-8 of JSON. Half an emoji, which models do write, becomes its JSON escape and is read back as it was."""
    return text.encode(errors="backslashreplace")


def read_json(path: Path) -> Any:
    """One JSON document.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", got=str(error), expected="one JSON document") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one at a time.

    Raises:
        DataError: the file is missing, or a line is not a JSON object; the message names the line.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="check the path; it is relative to the recipe") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder", expected="a JSONL file") from None
    with file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                line = json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number} is not JSON",
                    got=str(error),
                    expected='one object a line, such as {"messages": [{"role": "user", "content": "..."}]}',
                ) from None
            if not isinstance(line, dict):
                got = raw[:80].decode(errors="replace").strip()
                raise DataError(f"{path}, line {number} is not a JSON object", got=got, expected="{...}")
            yield line


@contextmanager
def whole_lines(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A JSONL file that appears whole or not at all, written line by line through the function given."""
    with whole_file(path) as file:

        def write(line: dict[str, Any]) -> None:
            file.write(_encode(json.dumps(line, ensure_ascii=False) + "\n"))

        yield write


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Write a JSONL file whole or not at all, streaming; returns how many lines."""
    count = 0
    with whole_lines(path) as write:
        for line in lines:
            write(line)
            count += 1
    return count


class SyncedLines:
    """An append-only JSONL file whose lines are on disk before they count.

    A half-written last line, which a kill or a full disk leaves behind, is cut off on opening: it never counted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refused must not be tried again on closing.
            self._file: IO[bytes] = path.open("ab+", buffering=0)
        self._cut_half_line()

    def _cut_half_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Write these lines and sync once; when this returns they survive a kill and a power cut.

        Raises:
            StorageFault: the disk is full; none of these lines is in the file.
        """
        data = _encode("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        if not data:
            return
        with storage(self.path):
            start = self._file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except BaseException:
                # Half a line would spoil the next one that is appended.
                with suppress(OSError):
                    self._file.truncate(start)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SyncedLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest(path: Path) -> str:
    """A digest of a file or folder that changes when its content does.

    Files up to 64 MiB are hashed whole; larger ones by size, modification time and their first and last
    MiB, so that checking a 140 GB teacher takes milliseconds.

    Raises:
        DataError: there is no such file or folder.
    """
    hasher = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for item in sorted(path.rglob("*")):
            if item.is_file():
                hasher.update(f"{item.relative_to(path)}\0{digest(item)}\0".encode())
        return hasher.hexdigest()
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size <= _WHOLE:
                while block := file.read(1 << 20):
                    hasher.update(block)
            else:
                hasher.update(f"{status.st_size} {status.st_mtime_ns}".encode() + file.read(1 << 20))
                file.seek(-(1 << 20), os.SEEK_END)
                hasher.update(file.read())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="check the path; it is relative to the recipe") from None
    return hasher.hexdigest()
