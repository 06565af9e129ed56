"""Two tokenisations of one text: what each token spells, where it stands, and which runs of tokens agree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Span = tuple[int, int]
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class Aligned(NamedTuple):
    """A run of the student's tokens and the run of the teacher's that spells the same text.

    Args:
        student: positions in the student's row, ascending, at least one.
        teacher: positions in the teacher's row, likewise.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]


def align_spans(student_offsets: Sequence[Span], teacher_offsets: Sequence[Span]) -> list[Aligned]:
    """The shortest runs of tokens that begin and end at the same places in the text, in order.

    A token ends where its span ends; a gap between two spans belongs to the token after it, as a space does.
    Tokens whose spans overlap, as the parts of one character do when offsets count characters, stay in one
    run; `byte_spans` tells them apart. Tokens with an empty span (those a template adds) belong to no run: to
    match an end of turn, give it the same span past the end of the text on both sides. Text that only one
    side has, before the first common place or after the last, is in no run either.

    Args:
        student_offsets: (start, end) of each of the student's tokens, in characters or bytes.
        teacher_offsets: the same for the teacher, over the same text in the same unit.

    Raises:
        ValueError: a span that ends before it starts, or spans that run backwards.
    """
    (s_real, s_cuts), (t_real, t_cuts) = _cuts(student_offsets, "student"), _cuts(teacher_offsets, "teacher")
    places = [place for place in s_cuts if place in t_cuts]
    return [
        Aligned(tuple(s_real[s_cuts[a] : s_cuts[b]]), tuple(t_real[t_cuts[a] : t_cuts[b]]))
        for a, b in pairwise(places)
    ]


def _cuts(offsets: Sequence[Span], side: str) -> tuple[list[int], dict[int, int]]:
    """Positions of the tokens with text, and each place between two of them -> how many stand before it."""
    real = [i for i, (start, end) in enumerate(offsets) if start != end]
    cuts = {offsets[i][0]: 0 for i in real[:1]}
    for count, i in enumerate(real, 1):
        start, end = offsets[i]
        after = offsets[real[count]] if count < len(real) else (end, end)
        if end < start or after[0] < start or after[1] < end:
            raise ValueError(f"the {side}'s spans must run forwards, got {(start, end)} and then {after}")
        if after[0] >= end:
            cuts[end] = count
    return real, cuts


def token_bytes(vocabulary: Mapping[str, int]) -> list[bytes]:
    """What each token spells, by id: `tokenizer.get_vocab()` of any byte-level or SentencePiece-like BPE.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen) write a byte as one visible character, a space as "Ġ" for
    example; the others (Llama 2, Mistral, Gemma) write a space as "▁" and lone bytes as "<0xE2>". Ids without
    a token spell nothing.

    Args:
        vocabulary: token -> id.
    """
    byte_level = _byte_alphabet() if "Ġ" in vocabulary else None
    spelled = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if byte_level is not None and all(c in byte_level for c in token):
            spelled[index] = bytes(byte_level[c] for c in token)
        elif byte_level is None and (fallback := FALLBACK.fullmatch(token)):
            spelled[index] = bytes.fromhex(fallback[1])
        else:  # a token added as plain text, or SentencePiece
            spelled[index] = (token if byte_level else token.replace("▁", " ")).encode()
    return spelled


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character -> byte: printable Latin-1 stands for itself, the others for 256 and up, in order."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def byte_spans(pieces: Sequence[bytes], text: str) -> list[Span]:
    """Where each token stands in the UTF-8 bytes of the text, parts of one character told apart.

    Args:
        pieces: what each token spells (`token_bytes`); b"" for tokens that are not of the text.
        text: what they spell together, but for one space that SentencePiece may put before it.

    Raises:
        ValueError: the pieces do not spell the text.
    """
    joined, want = b"".join(pieces), text.encode()
    added = 1 if joined == b" " + want else 0
    if joined[added:] != want:
        differ = next(i for i, (a, b) in enumerate(zip(joined + b"\0", want + b"\1", strict=False)) if a != b)
        raise ValueError(
            f"the tokens' {len(joined)} bytes and the text's {len(want)} differ from byte {differ} on"
        )
    spans, end = [], -added
    for piece in pieces:
        start, end = end, end + len(piece)
        spans.append((max(start, 0), max(end, 0)))
    return spans


def shared_tokens(student: Sequence[bytes], teacher: Sequence[bytes]) -> Tensor:
    """For each of the student's tokens the teacher's id of the same spelling, or -1: int64 `[student vocab]`.

    One to one. Where several tokens of a vocabulary spell the same the last counts, since a byte that is
    there for want of anything better has a low id. Tokens that mean the same under different names, such as
    the two ends of turn, can be entered in the result by hand.

    Args:
        student: what each token spells, from `token_bytes`; b"" never matches.
        teacher: likewise.
    """
    ids = {spelled: index for index, spelled in enumerate(teacher) if spelled}
    last = {spelled: index for index, spelled in enumerate(student)}
    return torch.tensor(
        [ids.get(spelled, -1) if last[spelled] == index else -1 for index, spelled in enumerate(student)],
        dtype=torch.int64,
    )
