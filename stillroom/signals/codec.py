"""One row of a book to bytes and back.

A row is, in this order, little-endian and without padding but to whole bytes between columns:

    tokens      uint32
    mask        1 bit a token
    token ids   ceil(log2 vocab) bits each

then, of sampled and top-k signals,

    heads       uint8 a signal
    draws       uint8 a signal              (unbiased samples only)
    entropy     uint16 a signal
    tail mass   uint16 where it is written
    weights     uint8 for each head token but a signal's first
    ids         ceil(log2 vocab) bits each

or, of hidden states, two bytes a number and signal; and every length follows from the columns before it and the
book's header.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, from_numpy

from stillroom.signals.bits import Bytes, ColumnReader, pack
from stillroom.signals.codes import id_bits
from stillroom.signals.kinds import AnySignals, Kind


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
    targets: AnySignals


def encode(row: Row, vocab: int) -> bytes:
    """The row as bytes. Ids must fit the vocabulary, and there must be one signal for each selected token."""
    bits = id_bits(vocab)
    columns = [
        np.array([len(row.token_ids)], "<u4"),
        np.packbits(row.loss_mask.numpy(), bitorder="little"),
        pack(row.token_ids.numpy(), bits),
        *row.targets.columns(bits),
    ]
    return b"".join(column.tobytes() for column in columns)


def decode(data: Bytes, vocab: int, kind: Kind) -> Row:
    """The row that these bytes hold.

    Raises:
        ValueError: the bytes are not a row of this vocabulary and kind.
    """
    bits, reader = id_bits(vocab), ColumnReader(data)
    mask = _mask(reader)
    token_ids = reader.packed(len(mask), bits)
    targets = kind.read(reader, int(np.count_nonzero(mask)), bits)
    reader.finish()
    return Row(from_numpy(token_ids.astype(np.int32)), from_numpy(mask), targets)


def signals_in(data: Bytes) -> int:
    """How many signals a row has, from the front of its bytes alone."""
    return int(np.count_nonzero(_mask(ColumnReader(data))))


def _mask(reader: ColumnReader) -> np.ndarray:
    tokens = int(reader.take("<u4", 1)[0])
    flags = reader.take("u1", -(-tokens // 8))
    return np.unpackbits(flags, count=tokens, bitorder="little").view(bool)
