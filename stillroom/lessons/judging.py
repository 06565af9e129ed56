"""A model says which of two answers is better: asked twice, in both orders, and believed where it says the same twice.

Judges prefer what they read first, or last (Zheng et al., Judging LLM-as-a-judge, arXiv 2306.05685); swapping shows it. How
often a judge prefers the right answer is measured on answers that were checked. The filter asks about a teacher's several
answers, the evaluation about a model's answer beside the teacher's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from stillroom import checks
from stillroom.contracts.progress import Meter
from stillroom.contracts.recipe import Teacher
from stillroom.contracts.records import Answer, Answerer, Message, Request, Sampling, content_key
from stillroom.contracts.runfolder import Run
from stillroom.lessons.teach.answered import AnswersFile, spent_by_others
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teaching import Panel, conclude, teach
from stillroom.models.endpoint import base_url
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import teacher_identity
from stillroom.models.teachers import price_of, terms_of
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

    @property
    def even(self) -> bool:
        """Whether a judge would read the same twice."""
        return _shown(self.one) == _shown(self.other)


class Judge:
    """Compares answers two by two; every verdict is kept like a teacher's answer, and paid for once.

    Args:
        model: whoever judges; any model that answers.
        origin: the address of an API, or the digest of a local model.
        file: where verdicts are looked up and written.
        bill: what they cost.
        meter: is told of each verdict that comes.
    """

    def __init__(
        self, model: Answerer, origin: str, file: AnswersFile, bill: Bill, meter: Meter | None = None
    ) -> None:
        self._model, self._origin, self._file, self._bill = model, origin, file, bill
        self._panel = Panel(meter or Meter())
        self._probes = 0
        self.counts: Counter[str] = Counter()
        self.last_error: str | None = None
        """Of a request that failed, if one did."""

    def compare(self, duels: Sequence[Duel]) -> list[int | None]:
        """Of each duel 1 where the first answer is better, -1 where the other one is, 0 where the orders do not agree or the
        answers are the same, about which nobody is asked; None where a verdict cannot be read.

        Raises:
            TeacherError, ServiceFault: as the model.
            UserError: the limit of costs is reached.
            StorageFault: the disk is full.
        """
        pairs = [
            None if duel.even else (self._request(duel, False), self._request(duel, True)) for duel in duels
        ]
        asked = (request for pair in pairs if pair for request in pair)
        taught = teach(asked, self._model, SAMPLING, self._file, self._bill, self._panel)
        conclude(taught, self._bill)
        self.last_error = taught.last_error or self.last_error
        found = [self._verdict(*pair) if pair else 0 for pair in pairs]
        self.counts["compared"] += len(found)
        self.counts["undecided"] += sum(not verdict for verdict in found)
        # Those that were turned down for their own fault, too long a request for one, will be so again.
        for name, count in (
            ("unreadable", found.count(None)),
            ("failed", taught.counts["failed"] - taught.counts["turned down"]),
        ):
            if count:
                self.counts[name] += count
        return found

    def probe(self, duels: Sequence[Duel]) -> None:
        """Count how often the judge prefers the first answer of these, which is right, to the other, which is wrong."""
        tried = duels[: _PROBED - self._probes]
        self._probes += len(tried)
        for verdict in self.compare(tried) if tried else ():
            self.counts[{1: "prefers right", -1: "prefers wrong"}.get(verdict or 0, "tried undecided")] += 1

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

    def _verdict(self, plain: Request, swapped: Request) -> int | None:
        first, second = _said(self._file.read(plain.key)), _said(self._file.read(swapped.key))
        if first is None or second is None:
            return None
        return first if first == -second else 0


def open_judge(
    judge: Teacher,
    run: Run,
    stage: str,
    file: AnswersFile,
    stack: ExitStack,
    say: Callable[[str], None],
    meter: Meter | None = None,
) -> Judge:
    """The judge of a recipe, loaded when first asked: a run whose verdicts are all there loads nothing.

    Args:
        judge: the recipe's section.
        run: whose `teach.max_cost` is one limit for all that asks an API.
        stage: which of the run's stages asks.
        file: the stage's verdicts.
        stack: closes the model.
        say: is told of the model's terms.
        meter: is told of each verdict that comes.

    Raises:
        ModelError: there is no such local model.
        TeacherError: an API has no usable address.
        UserError: there is a limit of costs and no price.
    """
    teach, base = run.recipe.teach, run.base
    sizes = {"batch_size": teach.batch_size, "concurrency": teach.concurrency}
    model = WhenAsked(judge.model, lambda: open_teacher(judge, base, None, **sizes))
    stack.callback(model.close)
    url = base_url(judge.api) if judge.api else None
    own = run.locate(judge.prices) if judge.prices else None
    limit = teach.max_cost if judge.api else None  # a judge on this machine has no price
    others = spent_by_others(run, stage) if limit is not None else 0.0
    bill = Bill(price_of(judge.model, url, own), SAMPLING, spent=file.totals.cost + others, limit=limit)
    for line in terms_of(judge.model, url, own).lines():
        say(f"  judge {judge.model}: {line}")
    return Judge(model, url or teacher_identity(judge, base), file, bill, meter)


def _said(answer: Answer | None) -> int | None:
    """1 for A, -1 for B, 0 for neither, None for what cannot be read."""
    if answer is None or answer.finish != "stop":
        return None
    found = _SAID.findall(checks.strip_reasoning(str(answer.messages[-1].get("content") or "")))
    return {"a": 1, "b": -1, "neither": 0}[found[-1].casefold()] if found else None


def _conversation(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def _shown(message: Message) -> str:
    """An answer as the judge reads it: without its reasoning, with its tool calls."""
    calls = f"\n{message['tool_calls']}" if message.get("tool_calls") else ""
    return checks.strip_reasoning(str(message.get("content") or "")) + calls
