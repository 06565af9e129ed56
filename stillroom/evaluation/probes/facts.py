"""How many facts can stand in a question before the one that is asked for gets lost?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from stillroom.checks import says
from stillroom.evaluation.probes.probe import Found, Given, Material, Probe, share
from stillroom.evaluation.probes.words import NAMES
from stillroom.evaluation.tasks import Item

COUNTS = (1, 2, 3, 5, 8, 12, 16, 20)
_EACH = 10


def facts(material: Material) -> Probe:
    """Made-up facts in the user's turn under the run's own system prompt, then a question about one of them."""
    draw = random.Random(material.seed)
    counts = [count for count in COUNTS for _ in range(_EACH)]
    items = [_item(material, draw, count) for count in counts]
    wanted = [item.reference for item in items]

    def measure(given: Given) -> Iterator[Found]:
        told = [says(verdict.text, right) for verdict, right in zip(given.asked, wanted, strict=True)]
        for count in COUNTS:
            yield from share(
                "recall", [one for one, of in zip(told, counts, strict=True) if of == count], count
            )

    return Probe("facts", measure, items)


def _item(material: Material, draw: random.Random, count: int) -> Item:
    names = draw.sample(NAMES, count)
    numbers = draw.sample(range(1000, 10_000), count)
    asked = draw.randrange(count)
    lines = [
        f"The locker of {name} has the number {number}." for name, number in zip(names, numbers, strict=True)
    ]
    text = " ".join(lines) + f"\n\nWhich number has the locker of {names[asked]}?"
    return Item([*material.system, {"role": "user", "content": text}], str(numbers[asked]))
