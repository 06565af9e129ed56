"""Customer messages for the quickstart: a seeded grammar of support tickets with known answers.

The task is narrow, stable and high in volume, which is what distilling is good at: read a message, think
in one short line, answer with JSON of four fields (intent, product, order, urgency). It has something to
lose: spelling mistakes are undone in the product's name, decoy numbers and a second order stand beside
the one that is meant, cues are denied or borrowed.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.lessons.prompts import ticket_words as words

INTENTS = (*words.REQUESTS, "other")
FIELDS = ("intent", "product", "order", "urgency")


@dataclass(frozen=True)
class Ticket:
    """A message, its right answer (keys in the order of FIELDS) and the line of thought that leads there."""

    message: str
    answer: dict[str, str | None]
    thought: str

    @property
    def reply(self) -> str:
        """The whole assistant turn, thought first."""
        return f"<think>{self.thought}</think>\n{self.reference}"

    @property
    def reference(self) -> str:
        """The answer alone, as JSON text."""
        return json.dumps(self.answer)


@dataclass(frozen=True)
class _Item:
    """One thing bought; both parts may stay unsaid."""

    product: str | None
    order: str | None

    @property
    def noun(self) -> str:
        return self.product.split()[-1] if self.product else "order"


@dataclass(frozen=True)
class _Pressure:
    """How pressing a message is: its sentences, the thought's word for the weightiest, their points."""

    cues: list[str]
    because: str
    points: int


def tickets(count: int, seed: int, *, spread: float = 0.0) -> Iterator[Ticket]:
    """Yield `count` tickets with distinct messages, the same for the same seed.

    Urgency is a matter of judgement. With `spread` 0 it is what readers agree on; above, each ticket is answered by
    one reader, whose view of the points differs from the others' by a logistic draw of this scale. The messages are
    the same.
    """
    rng, reader = random.Random(seed), random.Random(seed + 1)
    seen: set[str] = set()
    while len(seen) < count:
        share = reader.random()
        ticket = _ticket(rng, spread * math.log(share / (1 - share)) if spread else 0.0)
        if ticket.message not in seen:
            seen.add(ticket.message)
            yield ticket


def write_job(folder: Path, *, unlabelled: int, labelled: int, evaluation: int, seed: int) -> None:
    """Write the quickstart's three files of chat records; no message is in two of them.

    `messages.jsonl` holds user turns only, `labelled.jsonl` also the right answer's JSON text as the assistant's
    turn (people label answers, not thoughts), `eval.jsonl` user turns with that text as `reference`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stream = tickets(unlabelled + labelled + evaluation, seed)
    asked = [next(stream) for _ in range(unlabelled)]
    shown = [next(stream) for _ in range(labelled)]
    _write(folder / "messages.jsonl", ({"messages": [_user(t)]} for t in asked))
    answers = ({"role": "assistant", "content": t.reference} for t in shown)
    _write(
        folder / "labelled.jsonl", ({"messages": [_user(t), a]} for t, a in zip(shown, answers, strict=True))
    )
    _write(folder / "eval.jsonl", ({"messages": [_user(t)], "reference": t.reference} for t in stream))


def _user(ticket: Ticket) -> dict[str, str]:
    return {"role": "user", "content": ticket.message}


def _write(path: Path, records: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _ticket(rng: random.Random, leaning: float) -> Ticket:
    pressure = _pressure(rng)
    urgency = _urgency(pressure.points + leaning)
    if rng.random() < 0.1:
        intent, item = "other", _Item(None, None)
        body, subject = [_fill(rng.choice(words.OUT_OF_SCOPE), rng)], "no order"
    else:
        intent = rng.choice(list(words.REQUESTS))
        item = _item(rng)
        body, subject = _body(item, intent, rng)
    sentences = _around(body, pressure.cues, rng)
    message = _spoil(_punctuate(sentences, rng), rng)
    thought = f"{subject}; {rng.choice(words.REASONS[intent])}; {pressure.because}, so {urgency}"
    values = (intent, item.product, item.order, urgency)
    return Ticket(message, dict(zip(FIELDS, values, strict=True)), thought)


def _pressure(rng: random.Random) -> _Pressure:
    """What the message says of its urgency: nothing, one thing or two."""
    said = [_cue(rng) for _ in range(rng.choices((0, 1, 2), (2, 5, 3))[0])]
    points = sum(worth for _, _, worth in said)
    _, because, worth = max(said, key=lambda cue: abs(cue[2]), default=("", "", 0))
    return _Pressure([cue for cue, _, _ in said], because if worth else rng.choice(words.UNSAID), points)


def _cue(rng: random.Random) -> tuple[str, str, int]:
    """A sentence, the thought's name for it, its points."""
    if rng.random() < 0.5:
        return rng.choice(words.REMARKS)
    cue, because, worth = rng.choice(words.OCCASIONS)
    when = rng.choice(list(words.TIMES))
    return cue.format(when=when), f"{because} {when}", worth + words.TIMES[when]


def _urgency(points: float) -> str:
    return "high" if points > words.HIGH else "low" if points < words.LOW else "normal"


def _item(rng: random.Random) -> _Item:
    product = _product(rng) if rng.random() < 0.88 else None
    order = _order(rng) if rng.random() < (0.85 if product else 0.95) else None
    return _Item(product, order)


def _product(rng: random.Random) -> str:
    return f"{rng.choice(words.QUALIFIERS)} {rng.choice(words.NOUNS)}"


def _order(rng: random.Random) -> str:
    prefix = rng.choice(words.LETTERS) if rng.random() < 0.25 else ""
    return prefix + str(rng.randrange(10_000, 100_000 if rng.random() < 0.6 else 1_000_000))


def _body(item: _Item, intent: str, rng: random.Random) -> tuple[list[str], str]:
    """The sentences that carry the request, and the thought's words for what it is about."""
    layout = rng.random()
    if item.product and item.order and layout < 0.03:
        return _two_orders(item, intent, rng)
    number = _spoken(item.order, rng) if item.order else None
    it = f"{rng.choice(('the', 'my'))} {item.product}" if item.product else rng.choice(words.PARCELS)
    inline = number is not None and rng.random() < 0.5
    if inline:
        it += f" ({number})" if rng.random() < 0.5 else f" from {number}"
    body = [_request(intent, it, rng)]
    if number and not inline:
        own = rng.choice((f"it is {number}", f"my number is {item.order}", number))
        body.insert(rng.randrange(2), own)
    if item.product and layout > 0.96:
        other = _other(item, rng)
        aside = f"the {other.product} from {_spoken(other.order, rng)} {rng.choice(words.FINE)}"
        body.insert(rng.choice((0, len(body))), aside)
    return body, f"the {item.noun}, {item.order}" if item.order else f"the {item.noun}, no number"


def _two_orders(item: _Item, intent: str, rng: random.Random) -> tuple[list[str], str]:
    """Two orders are listed and the request points at one by its noun or its place."""
    other = _other(item, rng)
    place = rng.choice(("first", "second"))
    pair = (item, other) if place == "first" else (other, item)
    a, b = (f"{_article(i.product)} ({i.order})" for i in pair)
    listing = rng.choice(
        ("I ordered {a} and {b}", "I have two orders, {a} and {b}", "last week I bought {a} and {b}")
    )
    it = rng.choice((f"the {item.noun}", f"the {item.noun}", f"the {place} one"))
    body = [listing.format(a=a, b=b), _request(intent, it, rng)]
    return body, f"the {place} one, the {item.noun}, {item.order}"


def _other(item: _Item, rng: random.Random) -> _Item:
    """Another item that shares no word with `item`."""
    while True:
        product = _product(rng)
        if not set(product.split()) & set((item.product or "").split()):
            return _Item(product, _order(rng))


def _article(product: str | None) -> str:
    return f"{'an' if product and product[0] in 'aeiou' else 'a'} {product}"


def _spoken(order: str | None, rng: random.Random) -> str:
    return rng.choice(words.ORDER_FORMS).format(o=order)


def _request(intent: str, it: str, rng: random.Random) -> str:
    request = _fill(rng.choice(words.REQUESTS[intent]), rng, it=it)
    if rng.random() < 0.15:
        denied = rng.choice([i for i in words.DENIALS if i != intent])
        request = f"{rng.choice(words.DENIALS[denied])}, but {request}"
    return request


def _fill(template: str, rng: random.Random, it: str = "") -> str:
    """Fill a template's slots with seeded values."""
    return template.format(
        it=it,
        city=rng.choice(words.CITIES),
        food=rng.choice(words.FOODS),
        name=rng.choice(words.NAMES),
        product=_product(rng),
        number=rng.randrange(10_000, 1_000_000),
        price=f"{rng.randrange(5, 400)}.{rng.randrange(100):02d}",
        day=rng.randrange(1, 29),
        month=rng.choice(words.MONTHS),
        phone=f"07{rng.randrange(100, 1000)} {rng.randrange(100_000, 1_000_000)}",
    )


def _around(body: list[str], cues: list[str], rng: random.Random) -> list[str]:
    """Put greeting, cues, asides and thanks around the request."""
    sentences = list(body)
    for cue in cues:
        sentences.insert(rng.choice((0, len(sentences), len(sentences))), cue)
    if rng.random() < 0.15:
        sentences.insert(rng.choice((0, len(sentences))), _fill(rng.choice(words.ASIDES), rng))
    if rng.random() < 0.3:
        sentences.insert(0, rng.choice(words.GREETINGS))
    if rng.random() < 0.25:
        thanks = rng.choice(words.THANKS)
        sentences.append(f"{thanks}, {rng.choice(words.NAMES)}" if rng.random() < 0.6 else thanks)
    return sentences


def _punctuate(sentences: list[str], rng: random.Random) -> str:
    ends = [*rng.choices((".", "!", ","), (8, 1, 1), k=len(sentences) - 1), rng.choice(".!")]
    text = " ".join(s[0].upper() + s[1:] + end for s, end in zip(sentences, ends, strict=True))
    return text.lower() if rng.random() < 0.25 else text


def _spoil(text: str, rng: random.Random) -> str:
    """Misspell some words of some messages: never a number, at most one mistake a word."""
    rate = rng.choice((0.0, 0.0, 0.0, 0.05, 0.1))
    return re.sub(r"[A-Za-z]{4,}", lambda m: _misspell(m[0], rng) if rng.random() < rate else m[0], text)


def _misspell(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]
