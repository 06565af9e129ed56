"""One writer a book."""

from __future__ import annotations

import fcntl
from pathlib import Path

from stillroom.contracts.errors import RunError
from stillroom.contracts.files import storage


class WriterLock:
    """An exclusive lock on a folder's `.lock` file. The system takes it back when the process dies.

    Raises:
        RunError: another writer holds it. Not a BookError: the book is sound, and must not be written anew.
        StorageFault: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RunError(
                f"another program is writing the lesson book in {folder}",
                expected="one writer at a time; any number may read",
                do="wait for it to end, or write into another folder",
            ) from None

    def release(self) -> None:
        """Let the next writer in. Unlocking, not only closing: a forked child may hold the file open too."""
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
