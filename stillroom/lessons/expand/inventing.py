"""What the teacher is told when it invents questions, and what is read from its replies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.checks.reasoning import strip_reasoning
from stillroom.contracts.records import Message
from stillroom.lessons.prompts.questions import Question, user_text

_SHOWN = 1500
"""Characters of an example that are shown."""
_LONGEST_REPLY = 200_000
_NUMBERED = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+(.+)$", re.M)
_QUESTION = ("question", "prompt", "instruction", "message", "text", "input", "task", "item")

HARDER = (
    "adds one more constraint or requirement",
    "needs more steps of reasoning",
    "replaces something general by something specific and concrete",
    "goes deeper into the matter",
    "brings in irrelevant or misleading detail that must be told apart",
    "combines two such tasks in one",
)
"""Ways to make a task more demanding, after Evol-Instruct (Xu et al., WizardLM, 2023)."""


@dataclass(frozen=True)
class Candidate:
    """A question that the teacher thought of, and how likely it says it was."""

    text: str
    probability: float | None = None
    quote: str | None = None
    answer: str | None = None


def _ask(task: str, shown: str, wish: str, form: str) -> list[Message]:
    parts = [task and f"The job:\n{task.strip()}", shown, wish, form]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def _several(count: int) -> str:
    """Several candidates with their probabilities: more diverse than asking once for each (Zhang et al., Verbalized
    Sampling, 2025)."""
    return (
        f"Write {count} of them, drawn from everything that could come, the unlikely included, no two alike. Answer with a "
        'JSON list only: [{"question": "...", "probability": 0.05}, ...], where probability says how likely you hold it '
        "that just this one would come. Each question stands alone: whoever reads it sees nothing of this message."
    )


def examples_text(examples: Sequence[Question], title: str = "Examples of what people send") -> str:
    """The examples as the teacher sees them, with their right answers where there are any."""
    shown = []
    for number, example in enumerate(examples, 1):
        lines = f"<example {number}>\n{user_text(example.messages)[:_SHOWN]}\n"
        if example.reference:
            lines += f"[right answer] {example.reference[:_SHOWN]}\n"
        shown.append(f"{lines}</example {number}>")
    return f"{title}:\n" + "\n".join(shown)


def alike_request(task: str, examples: Sequence[Question], count: int) -> list[Message]:
    """New questions of the same kind (Wang et al., Self-Instruct, 2022)."""
    wish = "Invent new ones of the same kind and in the same style, about other matters, in other words and lengths."
    return _ask(task, examples_text(examples), wish, _several(count))


def harder_request(task: str, example: Question, way: str, count: int) -> list[Message]:
    """One question made more demanding."""
    wish = f"Rewrite it into new ones, each of which {way}. They stay within the job, sensible, and of its style."
    return _ask(task, examples_text([example], "Something that people send"), wish, _several(count))


def persona_request(task: str, examples: Sequence[Question], persona: str, count: int) -> list[Message]:
    """Questions that a certain person would send."""
    wish = f"Now somebody else writes: {persona}. Invent what this person would send, in this person's words."
    return _ask(task, examples_text(examples), wish, _several(count))


def topic_request(task: str, examples: Sequence[Question], topic: str, count: int) -> list[Message]:
    """Questions about a topic."""
    return _ask(task, examples_text(examples), f"Invent new ones about this topic: {topic}.", _several(count))


def edge_request(task: str, examples: Sequence[Question], count: int) -> list[Message]:
    """Rare and awkward ones."""
    wish = (
        "Invent awkward ones that a good assistant must get right all the same: ambiguous, incomplete, contradictory, "
        "very short or very long, badly spelt, of extreme values, or just outside of the job."
    )
    return _ask(task, examples_text(examples), wish, _several(count))


def failure_request(task: str, failed: Sequence[Question], count: int) -> list[Message]:
    """Questions with the same difficulty as those that were answered wrongly."""
    wish = (
        "An assistant answered these wrongly. Think of what made them difficult, and invent new ones with the same "
        "difficulties, about other matters."
    )
    return _ask(task, examples_text(failed, "Things that people sent"), wish, _several(count))


def passage_request(task: str, passage: str, count: int) -> list[Message]:
    """Questions about a passage, with the words of it that answer them."""
    form = (
        f"Write {count} different questions that this passage answers: some plain, some that join two places of it. Answer "
        'with a JSON list only: [{"question": "...", "quote": "...", "answer": "...", "probability": 0.1}, ...], where '
        "quote is copied word for word from the passage and proves the answer, answer is a few words only, and probability "
        "says how likely you hold it that a reader would ask just this. A question names what it is about and does not "
        "speak of a passage."
    )
    return _ask(task, f"<passage>\n{passage}\n</passage>", "", form)


def list_request(task: str, examples: Sequence[Question], wish: str, count: int) -> list[Message]:
    """A list of short texts: personas, topics."""
    form = f'Answer with a JSON list of {count} short texts only: ["...", ...], as different from each other as can be.'
    return _ask(task, examples_text(examples) if examples else "", wish, form)


def read_list(text: str) -> list[str]:
    """The texts of a reply to `list_request`; [] where it holds none."""
    answer = strip_reasoning(text)[:_LONGEST_REPLY]
    start = answer.find("[")
    try:
        value = json.JSONDecoder().raw_decode(answer[start:])[0] if start >= 0 else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        found = [item for item in value if isinstance(item, str)]
    else:
        found = _NUMBERED.findall(answer)
    return list(dict.fromkeys(item.strip() for item in found if item.strip()))


def read_candidates(text: str) -> list[Candidate]:
    """The questions of a reply: JSON objects wherever they stand, the list may be cut off; else a numbered list."""
    answer = strip_reasoning(text)[:_LONGEST_REPLY]
    found = [candidate for item in _objects(answer) if (candidate := _candidate(item))]
    if found or "{" in answer:
        return found
    texts = read_list(answer)
    return [Candidate(text) for text in texts if len(text) > 2]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every whole JSON object of a text, those inside another's lists too."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
            for inner in value.values():
                if isinstance(inner, list):
                    yield from (item for item in inner if isinstance(item, dict))
        at = text.find("{", end)


def _candidate(item: dict[str, Any]) -> Candidate | None:
    text = next((item[name] for name in _QUESTION if isinstance(item.get(name), str)), "").strip()
    if not text:
        return None
    likely = item.get("probability")
    sound = isinstance(likely, int | float) and not isinstance(likely, bool) and 0 <= likely <= 1
    others = {name: item[name] for name in ("quote", "answer") if isinstance(item.get(name), str)}
    return Candidate(text, float(likely) if sound else None, **others)  # type: ignore[arg-type]  # checked above
