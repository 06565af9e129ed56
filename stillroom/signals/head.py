"""head.safetensors: the teacher's output head, once in a book of hidden states.

The file is written in pieces and read by memory map, so that a head of gigabytes takes no second copy. What it must
be stands in the book's header; a head is compared with its checksum before anything is computed with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import whole_file
from stillroom.signals.shards import checksum

HEAD = "head.safetensors"
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
STATE_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_PIECE = 32 << 20
"""Bytes of weights that are written at once."""
_REWRITE = "delete the file and run the capture again: it is written anew, and no row is lost"


@dataclass(frozen=True)
class HeadFacts:
    """What a book's header says of its head.

    Args:
        blake2b: of head.safetensors, 32 hex digits.
        bytes: its length.
        width: of a hidden state.
        states: "bfloat16" or "float16", the numbers of the hidden states in the rows.
        bias: whether logits have one.
        scale: what logits, bias included, are multiplied by.
        softcap: c of `c * tanh(logits / c)` after scaling, or None.
    """

    blake2b: str
    bytes: int
    width: int
    states: str
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.states not in STATE_TYPES or self.width < 1:
            raise ValueError(f"hidden states of {self.width} numbers in {self.states}")

    def __str__(self) -> str:
        return f"{self.blake2b[:12]}, {self.width} wide"

    def intact(self, folder: Path) -> bool:
        """Whether the folder's head is byte for byte this one."""
        path = folder / HEAD
        return path.is_file() and path.stat().st_size == self.bytes and checksum(path) == self.blake2b

    def refuse_lost(self, folder: Path) -> None:
        """Raise BookError unless the folder holds a head of this length; its bytes are compared when it is loaded."""
        path = folder / HEAD
        size = path.stat().st_size if path.is_file() else None
        if size != self.bytes:
            raise BookError(
                f"the lesson book's {HEAD} is {'missing' if size is None else 'cut short or too long'}",
                got=None if size is None else f"{size:,} bytes",
                expected=f"{self.bytes:,} bytes",
                do=_REWRITE,
            )


@dataclass(frozen=True, eq=False)
class BookHead:
    """A teacher's output head as a book keeps it; built by `of` or `load`.

    Args:
        weight: `[vocab, width]`, without columns of the logits that only pad them.
        bias: `[vocab]` or None.
        facts: what the book's header says of it.
    """

    weight: Tensor
    bias: Tensor | None
    facts: HeadFacts
    _copies: dict[torch.device, BookHead] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, softcap: float | None = None
    ) -> BookHead:
        """The head of a teacher, on any device; its file's checksum is taken here, in one pass over the weights.

        Hidden states are kept in bfloat16 under a head in bfloat16, else in float16: what a teacher computes in halves
        is kept as it is, and of float32 eleven bits.

        Args:
            weight: `[vocab, width]` in float32, bfloat16 or float16; cut off rows that no token of the tokenizer has.
            bias: `[vocab]` or None.
            scale, softcap: as in `stillroom.losses.TeacherHead`.

        Raises:
            ValueError: shapes or dtypes that do not fit.
        """
        if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(
                f"a head's weight must be [vocab, width] and its bias [vocab], got {tuple(weight.shape)}"
                f" and {None if bias is None else tuple(bias.shape)}"
            )
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        summed, size = hashlib.blake2b(digest_size=16), 0
        for piece in _pieces(weight, bias):
            summed.update(piece)
            size += len(piece)
        facts = HeadFacts(
            blake2b=summed.hexdigest(),
            bytes=size,
            width=weight.shape[1],
            states="bfloat16" if weight.dtype == torch.bfloat16 else "float16",
            bias=bias is not None,
            scale=float(scale),
            softcap=softcap,
        )
        return cls(weight, bias, facts)

    @classmethod
    def load(cls, folder: Path, facts: HeadFacts) -> BookHead:
        """The head in a book's folder, mapped into memory.

        Raises:
            BookError: it is not what the header says.
        """
        facts.refuse_lost(folder)
        try:
            if checksum(folder / HEAD) != facts.blake2b:
                raise ValueError(f"another blake2b than {facts.blake2b}")
            with safe_open(folder / HEAD, "pt") as file:
                head = cls(file.get_tensor("weight"), file.get_tensor("bias") if facts.bias else None, facts)
            if head.weight.shape[1] != facts.width:
                raise ValueError(f"weights for states {head.weight.shape[1]} wide, not {facts.width}")
            return head
        except (ValueError, SafetensorError, OSError) as fault:
            raise BookError(
                f"the lesson book's {HEAD} is not as it was written", got=fault, do=_REWRITE
            ) from None

    @property
    def vocab(self) -> int:
        """Tokens that have a logit."""
        return self.weight.shape[0]

    @property
    def states(self) -> torch.dtype:
        """The numbers that hidden states are kept in."""
        return STATE_TYPES[self.facts.states]

    def to(self, device: torch.device | str) -> BookHead:
        """The head on another device: the same one each time, and for all books that have this head."""
        device = torch.device(device)
        if device == self.weight.device:
            return self
        if device not in self._copies:
            place = (self.facts.blake2b, device)
            copy = _ELSEWHERE.get(place)
            if copy is None:
                bias = None if self.bias is None else self.bias.to(device)
                copy = _ELSEWHERE[place] = BookHead(self.weight.to(device), bias, self.facts)
            self._copies[device] = copy
        return self._copies[device]


_ELSEWHERE: WeakValueDictionary[tuple[str, torch.device], BookHead] = WeakValueDictionary()
"""Heads on other devices than they were loaded on, by checksum: rows to train and to validate on come from one book."""


def put_head(folder: Path, facts: HeadFacts, head: BookHead | None) -> None:
    """See that the folder holds this head, writing it where it is missing or damaged.

    Raises:
        BookError: it would have to be written, and none, or another one, is given.
        StorageFault: the disk does not take it.
    """
    if head is not None and head.facts != facts:
        raise BookError("this head is not the one in the book's header", got=head.facts, expected=facts)
    if facts.intact(folder):
        return
    if head is None:
        raise BookError(
            "a lesson book of hidden states is written with the teacher's head",
            got=f"no whole {HEAD} in {folder}",
            do="give the head to Book.create as a BookHead",
        )
    with whole_file(folder / HEAD) as file:
        for piece in _pieces(head.weight, head.bias):
            file.write(piece)


def _pieces(weight: Tensor, bias: Tensor | None) -> Iterator[bytes]:
    """The file's bytes, the widest numbers first, so that each tensor begins at a multiple of its numbers' size."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    header, start = {}, 0
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _TYPES:
            raise ValueError(f"the head's {name} must be float32, bfloat16 or float16, got {tensor.dtype}")
        end = start + tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        tensor = tensors[name]
        rows = max(1, _PIECE * len(tensor) // max(1, tensor.numel() * tensor.itemsize))
        for part in tensor.split(rows):
            yield part.cpu().contiguous().view(torch.uint8).numpy().tobytes()
