"""Which batches an endpoint has of ours: on disk before it has them, so that a killed process finds them again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from stillroom.contracts.files import SyncedLines, read_lines, write_lines
from stillroom.contracts.records import Request, content_key
from stillroom.models.chat_completions import ChatRequest


class BatchJournal:
    """The batches of one endpoint that are not collected, and the requests in each.

    Args:
        folder: where journal and requests are kept.
        url: the endpoint's address; another's batches are asked again when the recipe names it again.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self._url = folder, url
        self._lines = SyncedLines(folder / "journal.jsonl")
        self.open: dict[str, str | None] = {}
        """Batches that are not collected by name; the id at the API, or None where it is not known (yet)."""
        for line in read_lines(folder / "journal.jsonl"):
            if line.get("url", url) != url:
                continue
            if line["state"] in ("collected", "dropped"):
                self.open.pop(line["name"], None)
            else:
                self.open[line["name"]] = line.get("id")

    def keys(self) -> set[str]:
        """Keys of the requests in open batches."""
        return {line["key"] for name in self.open for line in read_lines(self._file(name))}

    def requests(self, name: str) -> Iterator[Request]:
        """The requests of a batch."""
        for line in read_lines(self._file(name)):
            yield ChatRequest(**line) if "parameters" in line else Request(**line)

    def keep(self, chunk: Sequence[Request]) -> str:
        """Write down what is about to be handed in, and under which name."""
        name = content_key([request.key for request in chunk], time.time_ns())[:16]
        write_lines(self._file(name), (vars(request) for request in chunk))
        self._note(name, "written")
        self.open[name] = None
        return name

    def handed_in(self, name: str, batch_id: str) -> None:
        """The API has the batch, under this id."""
        self._note(name, "handed in", batch_id)
        self.open[name] = batch_id

    def drop(self, name: str) -> None:
        """Forget a batch in which nothing was answered."""
        self._end(name, "dropped")

    def collected(self, name: str) -> None:
        """All answers of the batch were taken over."""
        self._end(name, "collected")

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _end(self, name: str, state: str) -> None:
        self._note(name, state)
        del self.open[name]
        self._file(name).unlink(missing_ok=True)

    def _note(self, name: str, state: str, batch_id: str | None = None) -> None:
        line = {"name": name, "state": state, "url": self._url}
        self._lines.append([line | ({"id": batch_id} if batch_id else {})])

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.requests.jsonl"
