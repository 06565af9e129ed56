"""One row of a book to bytes and back.

A row is, in this order, little-endian and without padding but to whole bytes between columns:

    tokens      uint32
    mask        1 bit a token
    token ids   ceil(log2 vocab) bits each
    heads       uint8 a signal
    draws       uint8 a signal              (unbiased samples only)
    entropy     uint16 a signal
    tail mass   uint16 where it is written
    weights     uint8 for each head token but a signal's first
    ids         ceil(log2 vocab) bits each

and every length follows from the columns before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.signals.codes import Signals, id_bits, signals_read

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Row:
    """A sequence and what the teacher thought at its selected tokens.

    Args:
        token_ids: int32 `[tokens]`.
        loss_mask: bool `[tokens]`; True at the *predicted* tokens that count, so never at the first.
        targets: one signal for each True, in order: the one for position j is the teacher's distribution
            p(. | tokens before j), of which `token_ids[j]` is one outcome. Logits at place j - 1 make it.
    """

    token_ids: Tensor
    loss_mask: Tensor
    targets: Signals


def encode(row: Row, vocab: int) -> bytes:
    """The row as bytes. Ids must fit the vocabulary, and there must be one signal for each selected token."""
    targets, bits = row.targets.to("cpu"), id_bits(vocab)
    draws = targets.counts - targets.heads
    columns = [
        np.array([len(row.token_ids)], "<u4"),
        np.packbits(row.loss_mask.numpy(), bitorder="little"),
        pack(row.token_ids.numpy(), bits),
        targets.heads.numpy().astype(np.uint8),
        *([] if targets.bucket else [draws.numpy().astype(np.uint8)]),
        targets.entropy_codes.numpy().astype("<u2"),
        targets.tail_codes[targets.tailed].numpy().astype("<u2"),
        targets.codes[targets.coded].numpy(),
        pack(targets.ids.numpy(), bits),
    ]
    return b"".join(column.tobytes() for column in columns)


def decode(data: Bytes, vocab: int, *, bucket: bool, temperature: float) -> Row:
    """The row that these bytes hold.

    Raises:
        ValueError: the bytes are not a row of this vocabulary and kind.
    """
    bits, reader = id_bits(vocab), _Reader(data)
    tokens = int(reader.take("<u4", 1)[0])
    mask = np.unpackbits(reader.take("u1", -(-tokens // 8)), count=tokens, bitorder="little").view(bool)
    token_ids = unpack(reader.packed(tokens, bits), tokens, bits)
    signals = int(np.count_nonzero(mask))
    heads = reader.take("u1", signals).astype(np.int64)
    draws = np.zeros_like(heads) if bucket else reader.take("u1", signals).astype(np.int64)
    entropy = reader.take("<u2", signals).astype(np.int64)
    tailed = np.ones(signals, bool) if bucket else (heads > 0) & (draws > 0)
    tail = np.zeros_like(heads)
    tail[tailed] = reader.take("<u2", int(np.count_nonzero(tailed)))
    codes = reader.take("u1", int(np.maximum(heads - 1, 0).sum()))
    kept = int(heads.sum() + draws.sum())
    ids = unpack(reader.packed(kept, bits), kept, bits)
    reader.finish()
    targets = signals_read(
        ids=ids,
        heads=heads,
        draws=draws,
        codes=codes,
        tail_codes=tail,
        entropy_codes=entropy,
        bucket=bucket,
        temperature=temperature,
    )
    return Row(torch.from_numpy(token_ids.astype(np.int32)), torch.from_numpy(mask), targets)


def signals_in(data: Bytes) -> int:
    """How many signals a row has, from the front of its bytes alone."""
    reader = _Reader(data)
    tokens = int(reader.take("<u4", 1)[0])
    return int(np.unpackbits(reader.take("u1", -(-tokens // 8)), count=tokens, bitorder="little").sum())


def pack(values: NDArray[np.integer], bits: int) -> Bytes:
    """The values' low `bits` bits (at most 24), one after another, lowest first."""
    spread = (values.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(spread.astype(np.uint8), bitorder="little")


def unpack(data: Bytes, count: int, bits: int) -> NDArray[np.int64]:
    """The first `count` values of `bits` bits."""
    padded = np.zeros(len(data) + 4, np.uint8)
    padded[:-4] = data
    # The four bytes from each place on as one number: 24 bits and a shift of up to 7 lie within them.
    words = np.ndarray((len(data) + 1,), "<u4", padded, strides=(1,))
    start = np.arange(count) * bits
    found = words[start >> 3].astype(np.int64)
    found >>= start & 7
    found &= (1 << bits) - 1
    return found


class _Reader:
    """Takes columns from the front of a row's bytes, without copying them."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if self.at + size > len(self.data):
            raise ValueError("the row is shorter than its columns")
        self.at += size
        return self.data[self.at - size : self.at].view(dtype)

    def packed(self, count: int, bits: int) -> Bytes:
        return self.take("u1", -(-count * bits // 8))

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ValueError("the row is longer than its columns")
