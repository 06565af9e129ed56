"""What all rows of a book share, and the key of a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts.errors import BookError
from stillroom.contracts.files import write_json
from stillroom.signals.capture import KINDS
from stillroom.signals.head import BookHead, HeadFacts

FORMAT = 2
HIDDEN = "hidden"
SHARED = ("tokenizer", "template", "vocab", "temperature", "kind", "head")  # what rows mean something under
_SHARD_BYTES = 1 << 27
"""Of hidden states, after which a shard is closed: a writer holds one in memory."""
_MISFITS = {
    "tokenizer": ("this book was captured with another tokenizer", "capture again with this tokenizer"),
    "template": ("this book was captured with another chat template", "capture again with this template"),
    "vocab": (
        "this book was captured over a vocabulary of {got} tokens, {want} are asked for",
        "capture again",
    ),
    "temperature": (
        "this book was captured at temperature {got}, the recipe trains at {want}",
        "set distil.temperature to {got}, or capture again at {want}",
    ),
    "head": (
        "this book's hidden states enter another head",
        "keep to the book of that teacher; rows under different heads cannot lie in one book",
    ),
    "format": (
        "this book is written in format {got}, this version reads {want}",
        "delete its folder and capture again",
    ),
}


@dataclass(frozen=True)
class BookHeader:
    """What all rows of a book share; its header.json.

    Args:
        tokenizer: hash of the tokenizer whose ids the rows hold.
        template: hash of the chat template that laid the rows out.
        vocab: tokens that ids and signals range over, at most 2^24; padding of the head not counted.
        temperature: of capture, and so of training. Hidden states have none and serve any: 1.
        kind: "head+draws", "top-k" or "hidden".
        budget: bytes a token that the signals were given; of hidden states, that they take.
        teacher: the teacher's name, for people.
        shard_tokens: signals after which a shard is closed.
        format: version of the files.
        head: of hidden states, the head that they enter; None for the other kinds.
    """

    tokenizer: str
    template: str
    vocab: int
    temperature: float
    kind: str
    budget: int
    teacher: str
    shard_tokens: int = 1 << 20
    format: int = FORMAT
    head: HeadFacts | None = None

    def __post_init__(self) -> None:
        kinds = (*KINDS, HIDDEN)
        if self.kind not in kinds or not 2 <= self.vocab <= 1 << 24 or not self.temperature > 0:
            raise BookError(
                "a lesson book cannot have this header",
                got=f"kind {self.kind!r}, vocab {self.vocab}, temperature {self.temperature}",
                expected=f"a kind of {', '.join(kinds)}, 2 to 2^24 tokens, a positive temperature",
            )
        if (self.kind == HIDDEN) != (self.head is not None) or (self.head and self.temperature != 1):
            raise BookError(
                "a lesson book cannot have this header",
                got=f"kind {self.kind!r}, head {self.head}, temperature {self.temperature}",
                expected="a head with hidden states, at temperature 1, and with them alone",
                do="make it with BookHeader.of_head",
            )

    @classmethod
    def of_head(
        cls, tokenizer: str, template: str, head: BookHead, *, teacher: str, vocab: int | None = None
    ) -> BookHeader:
        """The header of a book of hidden states that enter this head.

        Args:
            tokenizer, template, teacher: as in the class.
            head: the teacher's.
            vocab: tokens of the tokenizer, where the head has fewer rows: it never says the others.
        """
        return cls(
            tokenizer,
            template,
            vocab=max(head.vocab, vocab or 0),
            temperature=1.0,
            kind=HIDDEN,
            budget=2 * head.facts.width,
            teacher=teacher,
            shard_tokens=max(1, _SHARD_BYTES // (2 * head.facts.width)),
            head=head.facts,
        )

    @classmethod
    def read(cls, folder: Path) -> BookHeader:
        """The header of the book in this folder; BookError where there is none that can be read."""
        try:
            found = json.loads((folder / "header.json").read_text())
            if found["format"] != FORMAT:
                raise _misfit("format", found["format"], FORMAT)
            said = found.pop("checksum")
            if "head" in found:
                found["head"] = HeadFacts(**found["head"])
            header = cls(**found)
            if said != header._checksum():
                raise ValueError(f"its checksum is {header._checksum()}, it says {said}")
            return header
        except OSError:
            raise BookError(
                f"there is no lesson book in {folder}", do="capture one with `stillroom teach`"
            ) from None
        except (ValueError, KeyError, TypeError) as fault:
            raise BookError(
                f"{folder / 'header.json'} cannot be read",
                got=fault,
                do="delete the book's folder and capture again",
            ) from None

    def write(self, folder: Path) -> None:
        """Write header.json, whole or not at all."""
        write_json(folder / "header.json", self._said() | {"checksum": self._checksum()})

    def joined(self, other: BookHeader) -> BookHeader:
        """The header of a book that holds the rows of both: teachers named together, the larger budget.

        Raises:
            BookError: anything else differs, so that rows of one would be misread in the other.
        """
        self.require(**{name: getattr(other, name) for name in SHARED})
        teachers = dict.fromkeys([*self.teacher.split(" + "), *other.teacher.split(" + ")])
        return replace(self, teacher=" + ".join(teachers), budget=max(self.budget, other.budget))

    def _checksum(self) -> str:
        """blake2b of the other fields as JSON, names sorted, without spaces; 32 hex digits."""
        text = json.dumps(self._said(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _said(self) -> dict[str, Any]:
        """The fields as they are written; a book without a head says nothing of one."""
        return {name: value for name, value in asdict(self).items() if name != "head" or value is not None}

    def require(self, **wanted: object) -> None:
        """Raise BookError unless each named field that is not None has this value.

        Of hidden states any temperature is the right one.
        """
        if self.head is not None:
            wanted.pop("temperature", None)
        for field in fields(self):
            want, got = wanted.get(field.name), getattr(self, field.name)
            if want is not None and want != got:
                raise _misfit(field.name, got, want)


def row_key(
    tokenizer: str,
    token_ids: Sequence[int] | np.ndarray | Tensor,
    loss_mask: Sequence[bool] | np.ndarray | Tensor,
) -> str:
    """The content key of a row: blake2b of tokenizer hash, token ids and mask, 32 hex digits."""
    ids = np.asarray(torch.as_tensor(token_ids).cpu(), "<i4")
    mask = np.asarray(torch.as_tensor(loss_mask).cpu(), bool)
    content = hashlib.blake2b(digest_size=16)
    for part in (tokenizer.encode(), ids.tobytes(), np.packbits(mask).tobytes()):
        content.update(len(part).to_bytes(8, "little") + part)
    return content.hexdigest()


def _misfit(name: str, got: object, want: object) -> BookError:
    what, do = _MISFITS.get(
        name, (f"this book's {name} is another", f"set it to {got}, or capture into a new folder")
    )
    return BookError(
        what.format(got=got, want=want),
        got=f"{name} {got}",
        expected=f"{name} {want}",
        do=do.format(got=got, want=want),
    )
