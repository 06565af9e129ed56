"""What the capture of a lesson book takes: bytes of disk, and the teacher's time. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

ANSWER_TOKENS, QUESTION_TOKENS = 100, 50
"""Guesses where nothing has been answered yet."""
_ROW_BYTES = 48
"""A row's length, key, offset and checksum, and its entry in the lookup."""


@dataclass(frozen=True)
class Capture:
    """Sums over a book that is to be captured.

    Args:
        tokens: of all rows, questions included.
        signals: tokens that are to be predicted.
        bytes: on disk, at most; a sure teacher takes a fraction of it. The head is counted.
        head: bytes of the head in a book of hidden states, once, however many rows; else 0.
        seconds: of the teacher's forward passes; None where its size or the machine's speed is not known.
    """

    tokens: float
    signals: float
    bytes: float
    seconds: float | None
    head: int = 0


def capture_sums(
    rows: int,
    *,
    question_tokens: float,
    answer_tokens: float,
    vocab: int,
    bytes_per_token: int,
    head: int = 0,
    parameters: int | None = None,
    flops: float | None = None,
) -> Capture:
    """What a book over so many lessons takes.

    A forward pass takes 2 floating-point operations a parameter and token (Kaplan et al. 2020, attention left out); every
    lesson is read once, whoever wrote its answer.

    Args:
        rows: lessons.
        question_tokens, answer_tokens: of one lesson, on average.
        vocab: the student's tokens, without padding of the head.
        bytes_per_token: the signals' budget, `teach.signal.bytes_per_token`; of hidden states, as in `hidden_bytes`.
        head: bytes of the head in a book of hidden states.
        parameters: of the teacher.
        flops: operations a second that the machine does in such a pass; a measured figure, not its maker's.
    """
    tokens, signals = rows * (question_tokens + answer_tokens), rows * answer_tokens
    bits = max(1, (vocab - 1).bit_length())
    size = signals * bytes_per_token + tokens * (bits + 1) / 8 + rows * _ROW_BYTES + head
    seconds = 2 * parameters * tokens / flops if parameters and flops else None
    return Capture(tokens, signals, size, seconds, head)


def hidden_bytes(width: int, vocab: int, dtype: str = "auto") -> tuple[int, int]:
    """Bytes of a hidden state, and at most of the head, in a book of kind `hidden`.

    Args:
        width: of the teacher's hidden states.
        vocab: the student's tokens.
        dtype: `teacher.dtype`; where that leaves it to the machine, the head is taken to be in float32.
    """
    return 2 * width, vocab * width * (4 if dtype in ("auto", "float32") else 2)
