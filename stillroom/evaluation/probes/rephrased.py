"""The same questions put in other ways: how much of the accuracy is kept?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from stillroom.evaluation.probes.probe import Found, Given, Material, Probe, last_turn, with_last_turn
from stillroom.evaluation.tasks import Item
from stillroom.stats import paired_bootstrap_ratio

_MOST = 40
"""Questions of each way."""
_TYPOS = 0.1
"""Of the words that may be altered."""
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def rephrased(material: Material) -> Probe:
    """The first questions in other case, with typing errors, with courtesies, with their sentences in another order.

    Words of the right answer stay as they are, since a model that copies them must find them. The order is left alone
    where it carries meaning: among the options of a choice, in code, in a text with tools.
    """
    draw = random.Random(material.seed)
    chosen = material.items[:_MOST]
    ways = {
        name: way
        for name, way in _WAYS.items()
        if name != "order" or material.task.score in ("json", "exact")
    }
    asked: list[tuple[str, int, Item]] = []
    for name, way in ways.items():
        for index, item in enumerate(chosen):
            text = last_turn(item)
            changed = way(text, {word.casefold() for word in _WORD.findall(item.reference)}, draw)
            if changed != text:
                again = Item(with_last_turn(item, changed), item.reference, item.tools, item.document)
                asked.append((name, index, again))

    def measure(given: Given) -> Iterator[Found]:
        for name in ways:
            pairs = [
                (verdict.correct, given.own[index].correct)
                for (kind, index, _), verdict in zip(asked, given.asked, strict=True)
                if kind == name
            ]
            if any(plain for _, plain in pairs):
                now, before = zip(*pairs, strict=True)
                yield Found(f"kept:{name}", paired_bootstrap_ratio(now, before, given.seed), len(pairs))

    return Probe("rephrased", measure, [item for _, _, item in asked], material.task.score)


_Way = Callable[[str, set[str], random.Random], str]


def _case(text: str, kept: set[str], draw: random.Random) -> str:
    """Everything in the other case than most of it has."""
    change = str.upper if text.islower() else str.lower
    return _WORD.sub(lambda match: match[0] if match[0].casefold() in kept else change(match[0]), text)


def _typos(text: str, kept: set[str], draw: random.Random) -> str:
    """Two neighbouring letters inside some of the longer words exchanged, in one word at least."""
    words = [m for m in _WORD.finditer(text) if m[0].casefold() not in kept and _exchanges(m)]
    letters = list(text)
    for match in draw.sample(words, min(len(words), max(1, round(_TYPOS * len(words))))):
        place = draw.choice(_exchanges(match))
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


def _exchanges(word: re.Match[str]) -> list[int]:
    """Where two different letters meet inside a word, its first and last left alone."""
    return [at for at in range(word.start() + 1, word.end() - 2) if word.string[at] != word.string[at + 1]]


def _politeness(text: str, kept: set[str], draw: random.Random) -> str:
    return f"Hello, I hope that you are well. {text} Thank you very much for your help!"


def _order(text: str, kept: set[str], draw: random.Random) -> str:
    """The first sentence last."""
    first, *others = _SENTENCE.split(text.strip())
    return " ".join([*others, first])


_WAYS: dict[str, _Way] = {"case": _case, "typos": _typos, "politeness": _politeness, "order": _order}
