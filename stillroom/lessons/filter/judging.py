"""A model says which of two answers is better: asked twice, in both orders, and believed where it says the same twice.

Judges prefer what they read first, or last (Zheng et al., Judging LLM-as-a-judge, arXiv 2306.05685); swapping shows it. How
often a judge prefers the right answer is measured on answers that were checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom import checks
from stillroom.contracts.progress import Meter
from stillroom.contracts.records import Answer, Answerer, Message, Request, Sampling, content_key
from stillroom.lessons.filter.selection import whole
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teaching import Panel, conclude, teach
from stillroom.stats.intervals import wilson

SAMPLING = Sampling(temperature=0.0, max_new_tokens=1024)
_PROBED = 200
"""Pairs of a right and a wrong answer that the judge is tried on."""
_RELIABLE = 0.7
"""Share of right answers preferred under which a judge is hardly one; 0.5 is a coin."""
_ASK = """Two answers to one request follow. Say which of them you would rather have given: a right one before a wrong one, \
a complete one before a partial one, a plain one before a wordy one. Length is no merit, nor is coming first.

<request>
{question}
</request>

<answer name="A">
{one}
</answer>

<answer name="B">
{other}
</answer>

Compare them in a few sentences. Then end with one line, which is exactly one of
Better: A
Better: B
Better: neither"""
_SAID = re.compile(r"^\W*better\W+(A|B|neither)\b", re.I | re.M)


@dataclass(frozen=True)
class Duel:
    """Two answers to one question."""

    before: Sequence[Message]
    one: Message
    other: Message


class Judge:
    """Compares answers two by two; every verdict is kept like a teacher's answer, and paid for once.

    Args:
        model: whoever judges; any model that answers.
        origin: the address of an API, or the digest of a local model.
        file: where verdicts are looked up and written.
        bill: what they cost.
    """

    def __init__(self, model: Answerer, origin: str, file: AnswersFile, bill: Bill) -> None:
        self._model, self._origin, self._file, self._bill = model, origin, file, bill
        self._panel = Panel(Meter())
        self._probes = 0
        self.counts: Counter[str] = Counter()

    def compare(self, duels: Sequence[Duel]) -> list[int]:
        """Of each duel 1 where the first answer is better, -1 where the other one is, 0 where the orders do not agree.

        Raises:
            TeacherError, ServiceFault: as the model.
            UserError: the limit of costs is reached.
            StorageFault: the disk is full.
        """
        pairs = [(self._request(duel, False), self._request(duel, True)) for duel in duels]
        asked = (request for pair in pairs for request in pair)
        conclude(teach(asked, self._model, SAMPLING, self._file, self._bill, self._panel), self._bill)
        found = [self._verdict(*pair) for pair in pairs]
        self.counts["compared"] += len(found)
        self.counts["undecided"] += found.count(0)
        return found

    def probe(self, duels: Sequence[Duel]) -> None:
        """Count how often the judge prefers the first answer of these, which is right, to the other, which is wrong."""
        tried = duels[: _PROBED - self._probes]
        self._probes += len(tried)
        for verdict in self.compare(tried) if tried else ():
            self.counts[{1: "prefers right", -1: "prefers wrong", 0: "tried undecided"}[verdict]] += 1

    def summary(self) -> dict[str, Any]:
        """For manifest and card."""
        return {**self.counts, "dollars": round(self._file.totals.cost, 6)}

    def warnings(self) -> Iterator[str]:
        """What the reader should know of this judge."""
        right = self.counts["prefers right"]
        decided = right + self.counts["prefers wrong"]
        if not decided:
            yield "nothing says how good the judge is: no question has a right and a wrong answer that were checked"
        elif right / decided < _RELIABLE or wilson(right, decided).low <= 0.5:
            yield (
                f"the judge is hardly one: of {decided} pairs of a right and a wrong answer that it decided it "
                f"preferred the right one in {right / decided:.0%}"
            )

    def _request(self, duel: Duel, swapped: bool) -> Request:
        first, second = (duel.other, duel.one) if swapped else (duel.one, duel.other)
        text = _ASK.format(question=_conversation(duel.before), one=_shown(first), other=_shown(second))
        messages: list[Message] = [{"role": "user", "content": text}]
        key = content_key(self._origin, self._model.name, messages, vars(SAMPLING), 0)
        return Request(key, messages, prompt=key)

    def _verdict(self, plain: Request, swapped: Request) -> int:
        first, second = _said(self._file.read(plain.key)), _said(self._file.read(swapped.key))
        return first if first == -second else 0


def _said(answer: Answer | None) -> int:
    """1 for A, -1 for B, 0 for neither and for what cannot be read."""
    if answer is None or answer.finish != "stop":
        return 0
    found = _SAID.findall(checks.strip_reasoning(str(answer.messages[-1].get("content") or "")))
    return {"a": 1, "b": -1}.get(found[-1].casefold(), 0) if found else 0


def _conversation(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def _shown(message: Message) -> str:
    """An answer as the judge reads it: without its reasoning, with its tool calls."""
    calls = f"\n{message['tool_calls']}" if message.get("tool_calls") else ""
    return checks.strip_reasoning(str(message.get("content") or "")) + calls


def ring(answers: Sequence[Message]) -> list[tuple[int, int]]:
    """Which of several answers meet: each the next one, the last the first; equal ones do not."""
    count = len(answers)
    meetings = [(at, (at + 1) % count) for at in range(count if count > 2 else count - 1)]
    return [(a, b) for a, b in meetings if whole(answers[a]) != whole(answers[b])]
