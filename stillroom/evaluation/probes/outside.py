"""Asked for what is not its task: does the model notice, or does it assert?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from stillroom.evaluation.probes.form import form_of
from stillroom.evaluation.probes.probe import Found, Given, Material, Probe, last_turn, share
from stillroom.evaluation.tasks import Item
from stillroom.stats import bootstrap_mean

_SHUFFLED = 16
_STRANGE = (
    "What is the boiling point of nitrogen?",
    "Write a haiku about rust.",
    "Who painted the ceiling of the Sistine Chapel?",
    "Translate 'the bridge is closed' into Latin.",
    "Name three moons of Saturn.",
    "How long does a sourdough loaf bake?",
    "Explain why the sky is blue to a child.",
    "What does the word 'sonder' mean?",
    "Give me a plan for learning the cello in a year.",
    "Which rivers flow into the Black Sea?",
    "Is it raining in Lisbon now?",
    "Tell me a joke about geologists.",
    "How do bees find their way home?",
    "Recommend a novel set in Patagonia.",
    "What would happen if the Moon were twice as near?",
    "Summarise the plot of Hamlet in one sentence.",
    "lorem ipsum dolor sit amet consectetur",
    "qwe rty uio asd fgh jkl zxc vbn",
    "∑ ∂ ∇ ∮ ≈ ≠ ≤ ≥ ∞ √",
    "Merci de me dire l'heure du prochain train pour Nantes.",
    "¿Cuántas provincias tiene la Argentina?",
    "0 1 1 2 3 5 8 13 21 34 55 89",
    "Who will win the next election?",
    "...",
)


def outside(material: Material) -> Probe:
    """Questions from elsewhere, and own questions with their words shuffled, which ask for nothing.

    A model that knows its limits is less sure of what it says there than of its own task, and does not press everything
    into the form of its task.
    """
    draw = random.Random(material.seed)
    texts = [*_STRANGE, *(_shuffled(last_turn(item), draw) for item in material.items[:_SHUFFLED])]
    items = [
        Item([*material.system, {"role": "user", "content": text}], "", material.items[0].tools)
        for text in texts
    ]
    in_form = form_of(material.task)

    def measure(given: Given) -> Iterator[Found]:
        for metric, verdicts in (("confidence_inside", given.own), ("confidence_outside", given.asked)):
            sure = [verdict.confidence for verdict in verdicts if verdict.confidence is not None]
            if sure:
                yield Found(metric, bootstrap_mean(sure, given.seed), len(sure))
        if in_form is not None:
            yield from share("form_outside", [in_form(verdict.text) for verdict in given.asked])

    return Probe("outside", measure, items)


def _shuffled(text: str, draw: random.Random) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)
