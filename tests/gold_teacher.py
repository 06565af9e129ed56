"""A teacher that knows the right answers of published data, and gives a known share of wrong and malformed ones.

It is an OpenAI-compatible server on 127.0.0.1. Every answer is drawn by its question and seed alone, and logged with what
it was meant to be, so that a test or a measurement can tell what verification had to throw out.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stillroom.lessons.prompts.questions import Question

Turn = dict[str, Any]
RIGHT, WRONG, MALFORMED = "right", "wrong", "malformed"


def first_allowed(allowed: Any) -> Any:
    """One right call's arguments out of BFCL's lists of values allowed."""
    if isinstance(allowed, dict):
        listed = {key: value if isinstance(value, list) else [value] for key, value in allowed.items()}
        return {key: first_allowed(value[0]) for key, value in listed.items() if value and value[0] != ""}
    return [first_allowed(item) for item in allowed] if isinstance(allowed, list) else allowed


def said(content: str, **more: Any) -> Turn:
    """An assistant's turn."""
    return {"role": "assistant", "content": content, **more}


def number_answers(question: Question) -> dict[str, Turn]:
    """A worked answer kept apart as reasoning, and the number; one that is off by one; one without a number."""
    right = str(question.reference)
    wrong = str(float(right) + 1)
    return {
        RIGHT: said(f"The answer is {right}.", reasoning_content=question.solution or ""),
        WRONG: said(f"The answer is {wrong}.", reasoning_content=question.solution or ""),
        MALFORMED: said("It cannot be told from what is given here."),
    }


def code_answers(question: Question) -> dict[str, Turn]:
    """The reference solution; one that gives back something else; one that is no Python."""
    tests = json.loads(str(question.reference))
    name, whole = tests["entry_point"], str(question.solution)
    # A fresh list equals nothing that the tests can want, and arithmetic goes wrong with it too.
    spoiled = f"{whole}\n_right = {name}\n\n\ndef {name}(*args):\n    return [_right(*args), 'and more']\n"
    return {
        RIGHT: said(f"```python\n{whole}```"),
        WRONG: said(f"```python\n{spoiled}```"),
        MALFORMED: said(f"```python\n{whole.replace('def ', 'define ')}```"),
    }


def call_answers(question: Question) -> dict[str, Turn]:
    """The right calls; one with an argument that nobody asked for; one that cannot be read."""
    wanted = [
        (name, first_allowed(arguments))
        for call in json.loads(str(question.reference))
        for name, arguments in call.items()
    ]
    if not wanted:  # no tool is to be called
        name = (question.tools or [{"function": {"name": "none"}}])[0]["function"]["name"]
        return {
            RIGHT: said("None of the tools at hand can do that."),
            WRONG: _calling([(name, {})]),
            MALFORMED: said(f'<tool_call>\n{{"name": "{name}", "argum\n</tool_call>'),
        }
    name, arguments = wanted[0]
    return {
        RIGHT: _calling(wanted),
        WRONG: _calling([(name, {**arguments, "nobody asked": 1}), *wanted[1:]]),
        MALFORMED: said(f'<tool_call>\n{{"name": "{name}", "argum\n</tool_call>'),
    }


def _calling(calls: Iterable[tuple[str, Any]]) -> Turn:
    made = [
        {
            "id": f"call_{place}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given)},
        }
        for place, (name, given) in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def choice_answers(question: Question) -> dict[str, Turn]:
    """The right letter; another one; none."""
    right = str(question.reference)
    return {
        RIGHT: said(f"The answer is {right}."),
        WRONG: said(f"The answer is {'B' if right == 'A' else 'A'}."),
        MALFORMED: said("All of them have something to be said for them."),
    }


@dataclass
class Fact:
    """Something that a knowledge base says, the words that prove it, and ways of asking for it."""

    answer: str
    quote: str
    wordings: list[str]

    def answers(self) -> dict[str, Turn]:
        """The fact with its proof; with a proof that stands nowhere; without any."""
        return {
            RIGHT: said(f'{self.answer}. It says "{self.quote}".'),
            WRONG: said(f'{self.answer}. It says "{self.quote} and so it was".'),
            MALFORMED: said(f"{self.answer}."),
        }


_FIELD = re.compile(r"^(PEP|Title|Author|Status|Type|Created): (.+)$", re.M)


def facts_of(passage: str) -> list[Fact]:
    """The facts of a PEP's head: who wrote it, its kind, when it was created; each asked for in several ways."""
    head = re.search(r"^PEP: \d+\n(?:.+\n?)+", passage, re.M)
    known = {name: value.strip() for name, value in _FIELD.findall(head[0] if head else "")}
    if len(known) < 6:
        return []
    pep, title = known["PEP"], known["Title"]
    beside = {"Author": ("Author", "Status"), "Type": ("Status", "Type"), "Created": ("Type", "Created")}

    def quote(name: str) -> str:
        return " ".join(f"{one}: {known[one]}" for one in beside[name])

    ways = {
        "Author": [
            f"Who wrote PEP {pep}?", f"Name whoever is behind “{title}”, number {pep}.",
            f"Whose work is Python's proposal {pep}?", f"{title} (PEP {pep}): its author, please.",
        ],
        "Type": [
            f"Of which type is PEP {pep}?", f"“{title}”, number {pep}: what kind of proposal has it been?",
            f"Tell me the sort of document that proposal {pep} is.", f"{title} (PEP {pep}): its type, please.",
        ],
        "Created": [
            f"When was PEP {pep} created?", f"The day on which “{title}”, number {pep}, came into being?",
            f"What is the date of Python's proposal {pep}?", f"{title} (PEP {pep}): its date, please.",
        ],
    }  # fmt: skip
    return [
        Fact(known[name], quote(name), wordings)
        for name, wordings in ways.items()
        if re.search(r"^" + re.escape(f"{name}: {known[name]}") + r"$", passage, re.M)
        and missing_nothing(quote(name), passage)
    ]


def missing_nothing(quote: str, passage: str) -> bool:
    """Whether the passage has the words, one after the other."""
    return " ".join(quote.split()) in " ".join(passage.split())


@dataclass
class GoldTeacher:
    """What the server knows and what it has said.

    Args:
        wrong: share of answers that are wrong.
        malformed: share of answers that are not even of the form that was asked for.
    """

    wrong: float = 0.2
    malformed: float = 0.1
    answers: dict[str, dict[str, Turn]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    """Every answer: its question, the turn, what it was meant to be, and the temperature."""

    def learn(self, questions: Iterable[Question], make: Callable[[Question], dict[str, Turn]]) -> None:
        """Take in questions with right answers."""
        for question in questions:
            if question.reference is not None:
                self.answers[_key(question.messages, question.tools)] = make(question)

    def reply(self, body: dict[str, Any]) -> Turn:
        """The assistant's turn to a request."""
        messages, tools = body["messages"], body.get("tools")
        asked = str(messages[-1]["content"])
        draw = _draw(asked, body.get("seed", 0) if body.get("temperature") else 0)
        if "<passage>" in asked:
            return self._invent(asked, draw)
        known = self.answers.get(_key(messages, tools)) or self.answers.get(_key(messages, None))
        if known is None:
            return said("I do not know that one.")
        kind = WRONG if draw < self.wrong else MALFORMED if draw < self.wrong + self.malformed else RIGHT
        self.log.append(
            {"question": asked, "turn": known[kind], "kind": kind, "temperature": body.get("temperature")}
        )
        return known[kind]

    def _invent(self, asked: str, draw: float) -> Turn:
        """Questions about a passage; a share of them with a proof that does not stand in it."""
        passage = asked.partition("<passage>\n")[2].partition("\n</passage>")[0]
        found = []
        for fact in facts_of(passage):
            for wording in fact.wordings:
                self.answers[wording] = fact.answers()
                false = _draw(wording, 1) < self.wrong
                quote = f"{fact.quote} and so it was" if false else fact.quote
                found.append({"question": wording, "quote": quote, "answer": fact.answer, "probability": 0.2})
        if not found or draw < self.malformed:
            return said("There is nothing worth asking about here.")
        return said(json.dumps(found))


def _key(messages: list[dict[str, Any]], tools: Any) -> str:
    """The last question, bare of a passage before it, and the tools that may be called."""
    asked = str(messages[-1]["content"]).rpartition("quote the words that prove it: ")[2]
    names = [tool["function"]["name"] for tool in tools or ()]
    return asked + ("\n" + " ".join(names) if names else "")


def _draw(text: str, seed: int) -> float:
    return int(hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:12], 16) / 16**12


@contextmanager
def serving(teacher: GoldTeacher) -> Iterator[str]:
    """The address of a server that answers for the teacher."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            turn = teacher.reply(body)
            finish = "tool_calls" if turn.get("tool_calls") else "stop"
            length = len(json.dumps(turn)) // 4
            reply = json.dumps(
                {
                    "id": "chatcmpl-1",
                    "choices": [{"message": turn, "finish_reason": finish}],
                    "usage": {"prompt_tokens": 50, "completion_tokens": length},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
