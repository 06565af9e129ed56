"""More questions from few, invented by the teacher: planned in waves, near-duplicates dropped as they come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.checks.quotes import missing_quotes, quotes
from stillroom.contracts.recipe import Expand, Method
from stillroom.contracts.records import Message
from stillroom.lessons.expand import inventing
from stillroom.lessons.expand.inventing import Candidate
from stillroom.lessons.prompts.questions import Question, user_text
from stillroom.stats.minhash import NearDuplicates

Ask = Callable[[Sequence[list[Message]]], list[str]]
"""Conversations in, replies out, in their order; "" where there is none. Whoever gives it keeps what was paid for."""

WAVE = 32
"""Requests planned at a time. What a wave asks depends on the replies to earlier waves alone, so that a killed run plans
the same requests again and finds their replies on disk."""
_IDLE = 3
"""Waves without anything new after which the teacher has said what it has to say."""
PATIENCE = 4
"""Times as many requests as would do if everything were new; what is missing then is not worth its price."""
_POOL = 1000
_OWN = ("tools", "tool_choice", "response_format")
"""What questions are asked with; where all examples have it alike, so do the inventions."""
_LONGEST = 8000
_PERSONAS, _TOPICS, _SUBTOPICS = 24, 12, 8
DEFAULTS: tuple[Method, ...] = ("seeds", "harder", "personas", "topics", "edge-cases")


@dataclass
class Expansion:
    """One source's expansion.

    Args:
        settings: what the recipe says.
        seeds: examples that steer the teacher; nothing too like them is kept. Passages have none.
        ask: the teacher.
        task: the job's description.
        failures: what the student got wrong.
        passages: texts to ask about, with the method `documents`.
        avoid: texts of questions that must not be asked: what is too like them is not kept either.
        seed: seeds the choice of examples.
    """

    settings: Expand
    seeds: Sequence[Question]
    ask: Ask
    task: str = ""
    failures: Sequence[Question] = ()
    passages: Sequence[str] = ()
    avoid: Iterable[str] = ()
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """requests, candidates, near-duplicates, quotes that are not there, ..., filled while questions come."""

    def __post_init__(self) -> None:
        self._methods = tuple(self.settings.methods) or (("documents",) if self.passages else DEFAULTS)
        self._seen = NearDuplicates(self.settings.similarity)
        self._pool: list[Question] = []
        self._personas: list[str] = []
        self._topics: list[str] = []
        systems = {str([m for m in seed.messages if m["role"] == "system"]) for seed in self.seeds}
        first = self.seeds[0].messages[0] if self.seeds else None
        self._system = [first] if first and first["role"] == "system" and len(systems) == 1 else []
        self._own = {name: value for name in _OWN if (value := _shared(self.seeds, name))}

    def questions(self) -> Iterator[Question]:
        """New questions as the teacher's replies come, `settings.count` at most."""
        try:
            for text in (*self.avoid, *(user_text(seed.messages) for seed in self.seeds)):
                self._seen.add(text)
            self._prepare()
            yield from self._waves()
        finally:
            self._seen.close()

    def _waves(self) -> Iterator[Question]:
        made = idle = planned = 0
        each = self.settings.candidates
        most = PATIENCE * -(-self.settings.count // each) + _IDLE
        if "documents" in self._methods:
            most = min(most, len(self.passages))
        while made < self.settings.count and idle < _IDLE and planned < most:
            size = min(WAVE, -(-(self.settings.count - made) // each), most - planned)
            wave = [self._plan(planned + number) for number in range(size)]
            planned += size
            before = made
            for (method, passage, _), reply in zip(wave, self._put([item[2] for item in wave]), strict=True):
                for candidate in inventing.read_candidates(reply):
                    question = self._kept(method, passage, candidate)
                    if question is not None and made < self.settings.count:
                        made += 1
                        yield question
            idle = 0 if made > before else idle + 1

    def _put(self, conversations: Sequence[list[Message]]) -> list[str]:
        self.counts["requests"] += len(conversations)
        replies = self.ask(conversations)
        self.counts["without a usable reply"] += sum(not inventing.read_candidates(text) for text in replies)
        return replies

    def _prepare(self) -> None:
        """The personas and the topic tree, where a method wants them."""
        draw = random.Random(f"{self.seed} prepare")
        examples = self._examples(draw, 8)
        if "personas" in self._methods:
            wish = "Who sends such things? Describe very different people, each in one line: age, work, mood, way to write."
            [reply] = self.ask([inventing.list_request(self.task, examples, wish, _PERSONAS)])
            self._personas = inventing.read_list(reply)
        if "topics" in self._methods:
            wish = "Which topics do such things fall into?"
            [reply] = self.ask([inventing.list_request(self.task, examples, wish, _TOPICS)])
            broad = inventing.read_list(reply)[: 2 * _TOPICS]
            wishes = [f"Which narrower topics does the topic {topic!r} have?" for topic in broad]
            fine = self.ask(
                [inventing.list_request(self.task, examples, wish, _SUBTOPICS) for wish in wishes]
            )
            for topic, reply in zip(broad, fine, strict=True):
                narrower = inventing.read_list(reply)[: 2 * _SUBTOPICS]
                self._topics += [f"{topic}: {narrow}" for narrow in narrower] or [topic]

    def _examples(self, draw: random.Random, count: int) -> list[Question]:
        """Mostly given ones, some invented: what drifts away is held near the job."""
        given = draw.sample(self.seeds, min(len(self.seeds), count - count // 4))
        made = draw.sample(self._pool, min(len(self._pool), count - len(given)))
        return [*given, *made]

    def _plan(self, number: int) -> tuple[Method, str | None, list[Message]]:
        """The request of this number: its method, the passage it is about, and what is said."""
        draw = random.Random(f"{self.seed} {number}")
        method = self._methods[number % len(self._methods)]
        task, count = self.task, self.settings.candidates
        if method == "documents":
            passage = self.passages[number]
            return method, passage, inventing.passage_request(task, passage, count)
        if method == "harder":
            parent = draw.choice([*self.seeds, *self._pool])
            return method, None, inventing.harder_request(task, parent, draw.choice(inventing.HARDER), count)
        if method == "failures":
            failed = draw.sample(self.failures, min(4, len(self.failures)))
            return method, None, inventing.failure_request(task, failed, count)
        examples = self._examples(draw, 6)
        if method == "personas" and self._personas:
            request = inventing.persona_request(task, examples, draw.choice(self._personas), count)
        elif method == "topics" and self._topics:
            request = inventing.topic_request(task, examples, draw.choice(self._topics), count)
        elif method == "edge-cases":
            request = inventing.edge_request(task, examples, count)
        else:
            method, request = "seeds", inventing.alike_request(task, examples, count)
        return method, None, request

    def _kept(self, method: Method, passage: str | None, candidate: Candidate) -> Question | None:
        """The question of a candidate, or None where it is no use; counted either way."""
        self.counts["candidates"] += 1
        if not 2 < len(candidate.text) <= _LONGEST:
            self.counts["of no use"] += 1
            return None
        if passage is not None and not _proved(candidate.quote, passage):
            self.counts["quotes that do not stand in the passage"] += 1
            return None
        if self._seen.add(candidate.text) is not None:
            self.counts["near-duplicates"] += 1
            return None
        self.counts[f"by {method}"] += 1
        question = self._question(method, passage, candidate)
        if passage is None and len(self._pool) < _POOL:
            self._pool.append(question)
        return question

    def _question(self, method: Method, passage: str | None, candidate: Candidate) -> Question:
        text = candidate.text
        if passage is not None and self.settings.open_book:
            text = f"{passage}\n\nAnswer from the text above, and quote the words that prove it: {text}"
        return Question(
            [*self._system, {"role": "user", "content": text}],
            check="quotes" if passage is not None and self.settings.open_book else None,
            solution=candidate.answer,
            document=passage,
            method=method,
            **self._own,
        )


def _shared(seeds: Sequence[Question], name: str) -> Any:
    """What all seeds have alike in a field, or None."""
    values = [getattr(seed, name) for seed in seeds]
    return values[0] if values and all(value == values[0] for value in values) else None


def _proved(quote: str | None, passage: str) -> bool:
    """Whether there is a quote, long enough to be one, and it stands in the passage."""
    line = f"> {' '.join((quote or '').split())}"
    return bool(quotes(line)) and not missing_quotes(line, passage)
