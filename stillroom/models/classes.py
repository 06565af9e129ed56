"""What classifiers of every kind share: texts in, logits over classes out, and answers made of them. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts.classes import class_text
from stillroom.contracts.records import Message, Reply, Request, Sampling

Logits = NDArray[np.float32]
_AT_A_TIME = 64
"""Batches' worth of texts that are sorted by length together."""


class TextClassifier(ABC):
    """An `Answerer` that chooses among classes; its answer is the class's name, and how sure it is of it.

    Attributes:
        labels: the names of the classes, in the order of the logits.
        several: whether several classes may hold at once.
        parameters: how many weights it has, where it tells.
    """

    name: str
    labels: list[str]
    several: bool
    parameters: int | None = None

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to what the model can read."""

    @abstractmethod
    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """Logits float32 [rows, classes] of ids and mask [rows, longest], padded on the right."""

    def close(self) -> None:  # noqa: B027  # most have nothing to free
        """Free what the model holds."""

    def logits(self, texts: Sequence[str]) -> Logits:
        """Logits float32 [texts, classes], in the order of the texts; texts of like length are read together."""
        rows = self.encode(texts)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            found[chosen] = self.forward(*padded([rows[place] for place in chosen]))
        return found

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """As `Answerer.answer`; nothing is drawn, whatever the temperature."""
        waiting = iter(requests)
        while some := list(islice(waiting, self._batch_size * _AT_A_TIME)):
            logits = self.logits([question_text(request.messages) for request in some])
            yield from zip(some, (reply_of(row, self.labels, self.several) for row in logits), strict=True)


def question_text(messages: Iterable[Message]) -> str:
    """What a classifier reads of a conversation: what the user says."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, int64 [rows, longest], padded on the right with 0, which the mask hides."""
    longest = max(map(len, rows))
    ids, mask = (np.zeros((len(rows), longest), dtype=np.int64) for _ in range(2))
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


def reply_of(logits: Logits, labels: Sequence[str], several: bool) -> Reply:
    """The answer that logits [classes] come to, with its log-probability: the likeliest class, or all that are likely."""
    values = logits.astype(np.float64)
    if several:
        chosen = [label for label, value in zip(labels, values, strict=True) if value > 0]
        # log sigmoid of each class's own decision, which is right with at least one half.
        logprob = float(-np.logaddexp(0, -np.abs(values)).sum())
    else:
        best = int(values.argmax())
        chosen = [labels[best]]
        logprob = float(values[best] - np.logaddexp.reduce(values))
    return Reply(class_text(chosen, several=several), "stop", logprobs=[logprob])


def hidden_words(text: str, *, share: float, key: str, mark: str) -> str:
    """A copy of a text with some of its words hidden, at least one and not all if there are two.

    Args:
        text: any.
        share: of the words.
        key: hex digits that decide which ones: equal keys hide equal words.
        mark: what stands for a hidden word, such as the tokenizer's mask token.
    """
    words = text.split()
    count = min(max(1, round(share * len(words))), len(words) - 1)
    if count < 1:
        return text
    draw = np.random.default_rng(int(key, 16))
    for place in draw.choice(len(words), count, replace=False):
        words[place] = mark
    return " ".join(words)
