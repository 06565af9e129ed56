"""Do two models speak in the same tokens? Decided from tokenizer.json, before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from stillroom.contracts.errors import ModelError


def check_same_vocabulary(teacher: Path | str, student: Path | str) -> None:
    """Refuse a teacher and a student whose token ids mean different things.

    Heads padded to different sizes are no difference. Hub models are compared once they are downloaded.

    Raises:
        ModelError: the vocabularies differ.
    """
    if teacher == student or isinstance(teacher, str) or isinstance(student, str):
        return
    teachers, students = _tokens(teacher), _tokens(student)
    if teachers == students:
        return
    differing = sum(teachers.get(token) != number for token, number in students.items())
    raise ModelError(
        "teacher and student have different vocabularies, so the teacher's signals mean nothing to the student",
        got=f"{len(teachers):,} tokens and {len(students):,} tokens, of which {max(differing, 1):,} differ",
        expected="the same tokenizer",
        do="set teacher.tokens to own, which carries its signals over; choose a student of the teacher's family; or learn "
        "from its text alone: distil.loss: {hard: 1, soft: 0} and teach.signal.kind: none",
    )


def _tokens(folder: Path) -> dict[str, int]:
    """Token text to id, added tokens included; empty where there is no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    tree = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tree["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models keep [text, score] pairs
        vocabulary = {text: number for number, (text, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in tree.get("added_tokens", [])}
