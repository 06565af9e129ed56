"""Batches made ahead of time, in the background, while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_END: Any = object()


class Ahead(Iterator[Any]):
    """The items of an iterator, in their order, `depth` of them made before they are asked for.

    One thread makes them: numpy and torch let go of the interpreter while they work, and a book that is mapped into
    memory is shared and never copied. What the source raises is raised here, at the item that it concerns.
    """

    def __init__(self, source: Iterator[Any], depth: int) -> None:
        self.source = source
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._waiting: deque[Future[Any]] = deque()
        for _ in range(depth):
            self._order()

    def _order(self) -> None:
        self._waiting.append(self._worker.submit(next, self.source, _END))

    def __next__(self) -> Any:
        if not self._waiting:
            raise StopIteration
        item = self._waiting.popleft().result()
        if item is _END:
            self.close()
            raise StopIteration
        self._order()
        return item

    def close(self) -> None:
        """Make no more."""
        self._waiting.clear()
        self._worker.shutdown(wait=True, cancel_futures=True)
