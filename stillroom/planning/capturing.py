"""What the capture of a lesson book takes: bytes of disk, and the teacher's time. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

_ROW_BYTES = 48
"""A row's length, key, offset and checksum, and its entry in the lookup."""


@dataclass(frozen=True)
class Capture:
    """Sums over a book that is to be captured.

    Args:
        tokens: of all rows, questions included.
        signals: tokens that are to be predicted.
        bytes: on disk, at most; a sure teacher takes a fraction of it.
        seconds: of the teacher's forward passes; None where its size or the machine's speed is not known.
    """

    tokens: float
    signals: float
    bytes: float
    seconds: float | None


def capture_sums(
    rows: int,
    *,
    question_tokens: float,
    answer_tokens: float,
    vocab: int,
    bytes_per_token: int,
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
        bytes_per_token: the signals' budget, `teach.signal.bytes_per_token`.
        parameters: of the teacher.
        flops: operations a second that the machine does in such a pass; a measured figure, not its maker's.
    """
    tokens, signals = rows * (question_tokens + answer_tokens), rows * answer_tokens
    bits = max(1, (vocab - 1).bit_length())
    size = signals * bytes_per_token + tokens * (bits + 1) / 8 + rows * _ROW_BYTES
    seconds = 2 * parameters * tokens / flops if parameters and flops else None
    return Capture(tokens, signals, size, seconds)
