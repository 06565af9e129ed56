"""The right answers of a job of choosing among classes, as text and as names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from stillroom.contracts.errors import DataError


def class_names(answer: str, *, several: bool) -> list[str]:
    """The classes that an answer names: one, or, where several may hold, any number, sorted.

    Args:
        answer: a name; or a JSON list of names, or names with `|` between.
        several: whether several classes may hold at once.

    Raises:
        DataError: it is a JSON list of something else.
    """
    if not several:
        return [answer.strip()]
    text = answer.strip()
    if not text.startswith("["):
        return sorted({name.strip() for name in text.split("|") if name.strip()})
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            "a right answer does not name classes",
            got=text[:80],
            expected='a JSON list of names such as ["refund", "delay"], or refund|delay',
        )
    return sorted({*names})


def class_text(names: Sequence[str], *, several: bool) -> str:
    """The answer that names these classes; back to them by `class_names`."""
    return json.dumps(sorted(names), ensure_ascii=False) if several else names[0]


def all_classes(answers: Iterable[str], *, several: bool) -> list[str]:
    """Every class that these answers name, sorted."""
    return sorted({name for answer in answers for name in class_names(answer, several=several)})
