"""A teacher with tokens of its own, heard in the student's.

Where a token of both begins at the same place of an answer, both models have read the same text and say what comes next.
There the teacher's distribution is carried over: each of its tokens gives its probability to the student's token that
begins the same text (its equal where the student has it, else the longest that it begins with). Where the lesson's token is
one for several of the teacher's, as tokens are that a student was given beyond its teacher's, what the teacher gives to all
of them in a row is the lesson's token's. That is a distribution over the student's tokens. Inside a longer token of the
teacher nothing is said, and the lesson's own token counts for certain.

What is lost: which of its several tokens the student would have to write after the first, and that its tokenizer, which
sees further than one token, would have cut other answers otherwise too. `stillroom.losses.span_aligned_loss` compares more
closely where both models are live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, cast

import torch
from torch import Tensor

from stillroom.contracts.records import Message
from stillroom.losses import align_spans, token_bytes
from stillroom.models.rendering import Rendered, Renderer


@dataclass(frozen=True)
class Laid(Rendered):
    """A conversation as the student's tokens, and the conversation."""

    messages: Sequence[Message]
    complete: bool
    tools: list[dict[str, Any]] | None = None


class CarriedTeacher:
    """Tells logits over the student's tokens.

    Args:
        teacher: has a `renderer` of its own and `logits`; loaded where `WhenAsked` holds it.
        student: renders in the student's tokens.
    """

    def __init__(self, teacher: Any, student: Renderer) -> None:
        self._teacher, self._student = teacher, student
        self._pieces = token_bytes(student.tokenizer.get_vocab())
        self._theirs: list[bytes] | None = None
        self._first = torch.empty(0, dtype=torch.int64)

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """For each row in order, float32 [selected, student vocab]; minus infinity for what cannot come.

        Args:
            rows: each a `Laid`.
        """
        model = getattr(self._teacher, "teacher", self._teacher)  # loaded now
        renderer: Renderer = model.renderer
        if self._theirs is None:
            self._theirs = token_bytes(renderer.tokenizer.get_vocab())
            self._first = first_tokens(renderer, self._theirs, self._student, self._pieces)
        laid = [cast(Laid, row) for row in rows]
        theirs = [renderer.lesson(row.messages, row.complete, row.tools) for row in laid]
        for row, other, logits in zip(laid, theirs, model.logits(theirs), strict=True):
            yield self._carried(row, other, renderer, logits)

    def _carried(self, row: Rendered, other: Rendered, renderer: Renderer, logits: Tensor) -> Tensor:
        assert self._theirs is not None
        own, theirs = _answer(row), _answer(other)
        pairs = common_places(
            [b"" if token in self._student.eos_ids else self._pieces[token] for token in own],
            [b"" if token in renderer.eos_ids else self._theirs[token] for token in theirs],
        )
        found = torch.full((len(own), self._student.vocab_size), -torch.inf)
        found[torch.arange(len(own)), torch.tensor(own)] = 0.0
        if pairs:
            at, there = torch.tensor(pairs).T
            every = logits.cpu()[:, : len(self._first)].float().softmax(-1)
            p = every[there]
            known = (self._first >= 0).nonzero().squeeze(-1)
            carried = torch.zeros(len(at), found.shape[1])
            carried.index_add_(1, self._first[known], p[:, known])
            said = every[torch.arange(len(theirs)), torch.tensor(theirs)]
            for place, ((here, begin), (after, end)) in enumerate(pairwise(pairs)):
                whole = int(self._first[theirs[begin]])
                if (
                    after == here + 1 and end > begin + 1 and whole >= 0
                ):  # one token for several of the teacher's
                    both = said[begin:end].prod().clamp(max=carried[place, whole])
                    carried[place, whole] -= both
                    carried[place, own[here]] += both
            some = carried.sum(-1) > 0  # else it expects nothing that the student can write
            found[at[some]] = carried[some].log()
        return found


def _answer(row: Rendered) -> list[int]:
    return [token for token, chosen in zip(row.ids, row.mask, strict=True) if chosen]


def first_tokens(
    teacher: Renderer, theirs: Sequence[bytes], student: Renderer, own: Sequence[bytes]
) -> Tensor:
    """For each of the teacher's tokens the student's that begins the same text, or -1: int64 [teacher vocab].

    Ends of turn stand for each other; other special tokens for nothing.

    Args:
        teacher, student: renderers of the two tokenizers.
        theirs, own: what each of their tokens spells (`token_bytes`).
    """
    special = _special(student)
    spelled = {piece: index for index, piece in enumerate(own) if piece and index not in special}
    longest = max(map(len, spelled), default=0)
    first, silent = torch.full((len(theirs),), -1, dtype=torch.int64), _special(teacher)
    for index, piece in enumerate(theirs):
        if index in teacher.eos_ids and student.end_of_turn is not None:
            first[index] = student.end_of_turn
        elif index not in silent:
            starts = (piece[:length] for length in range(min(len(piece), longest), 0, -1))
            first[index] = next((spelled[start] for start in starts if start in spelled), -1)
    return first


def _special(renderer: Renderer) -> set[int]:
    added = renderer.tokenizer.added_tokens_decoder
    return {
        *renderer.tokenizer.all_special_ids,
        *(index for index, token in added.items() if token.special),
        *renderer.eos_ids,
    }


def common_places(own: Sequence[bytes], theirs: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where a token of both rows begins at the same place of the same text: indices into the rows.

    The texts are compared from their ends, since a row may begin with the end of the prompt, or with a space that only one
    tokenizer puts there. Empty pieces, ends of turn, stand for each other at the rows' ends.

    Args:
        own, theirs: what each token spells.
    """
    texts = zip(b"".join(own)[::-1], b"".join(theirs)[::-1], strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], texts))
    spans = [_from_end(pieces) for pieces in (own, theirs)]
    return [
        (run.student[0], run.teacher[0])
        for run in align_spans(*spans)
        if spans[0][run.student[0]][0] >= -same
    ]


def _from_end(pieces: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where each piece stands in bytes before the end; a last empty one right behind it."""
    place, spans = -sum(map(len, pieces)), []
    for number, piece in enumerate(pieces):
        end = place + len(piece) + (not piece and number == len(pieces) - 1)
        spans.append((place, end))
        place = end
    return spans
