"""A chat template as what stands before and after each role's words, read from what it renders.

Jinja templates are programs; what most of them do is to write each turn between two fixed strings. Whether one does, and
between which, its renderings tell: marked conversations are rendered and taken apart at their marks. What is read so is
checked on further conversations, and a template that does anything else is refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers.utils.chat_template_utils import render_jinja_template

from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Message
from stillroom.models.templates import TEMPLATE_ERRORS

Render = Callable[[Sequence[Message]], str]
"""A conversation as a chat template writes it, up to where the next answer begins."""


@dataclass(frozen=True)
class Turns:
    """What stands around each role's words; `answer` ends the prompt. Without `system` the template knows no such role."""

    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    system: tuple[str, str] | None = None
    joined: bool = False
    """Whether a user's words that follow the system's come without what stands before a user's."""
    default_system: str | None = None
    """The system's words where a conversation brings none."""

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation up to where its answer begins; the default system's words are not put in."""
        written, last = [], ""
        for message in messages:
            around = getattr(self, message["role"])
            if around is None:
                raise DataError(
                    "the chat template has no place of its own for a system prompt",
                    do="leave it out, or put it into the questions",
                )
            before = "" if self.joined and last == "system" else around[0]
            written.append(before + message["content"] + around[1])
            last = message["role"]
        return "".join(written) + self.answer

    def go(self) -> str:
        """The same in Go's template language, as Ollama's TEMPLATE reads it."""
        user, assistant = (_go(around) for around in (self.user, self.assistant))
        if self.joined:
            user = f'{{{{ if ne $last "system" }}}}{_literal(self.user[0])}{{{{ end }}}}{_go(("", self.user[1]))}'
        parts = ["{{ range .Messages }}"]
        if self.system is not None:
            parts.append(f'{{{{ if eq .Role "system" }}}}{_go(self.system)}{{{{ else if eq .Role "user" }}}}')
        else:
            parts.append('{{ if eq .Role "user" }}')
        parts.append(f'{user}{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}')
        if self.joined:
            parts = ['{{ $last := "" }}', *parts, "{{ $last = .Role }}"]
        return "".join([*parts, "{{ end }}", _literal(self.answer)])


def jinja(template: str, **special: str) -> Render:
    """A chat template as transformers renders it; `special` are tokens such as `bos_token`.

    The function raises DataError where the template refuses a conversation.
    """

    def render(messages: Sequence[Message]) -> str:
        try:
            (text,), _ = render_jinja_template(
                [list(messages)], chat_template=template, add_generation_prompt=True, **special
            )
        except TEMPLATE_ERRORS as error:
            raise DataError("the chat template refuses a conversation", got=str(error)) from error
        return text

    return render


def read_turns(render: Render, *, bos: str = "") -> Turns:
    """What a chat template writes around each turn.

    Args:
        render: the template.
        bos: a first token that the runtime puts in front by itself, and that is therefore left out.

    Raises:
        DataError: the template does not write turns between fixed strings.
    """
    start, ask, end, again, more, answer = _pieces(render, ["user", "assistant"] * 2 + ["user"])
    if (ask, end) != (again, more):
        raise _irregular("later turns are written in another way than the first")
    start = start.removeprefix(bos)
    after = _shared(ask, answer)
    rest = (ask[len(after) :], answer[len(after) :])
    try:
        opening, between, *others = _pieces(render, ["system", "user", "assistant", "user"])
    except DataError:  # refused, or not written where it was said
        before = _tail(end, start)
        turns = Turns((before, after), (rest[0], end.removesuffix(before)), rest[1])
    else:
        if others != [ask, end, answer]:
            raise _irregular("turns are written in another way below a system prompt")
        opening = opening.removeprefix(bos)
        default, before = _default(start, opening, between, end)
        joined = not between.endswith(before)
        turns = Turns(
            (before, after),
            (rest[0], end.removesuffix(before)),
            rest[1],
            (opening, between if joined else between.removesuffix(before)),
            joined,
            default,
        )
    _check(turns, render, bos)
    return turns


def _default(start: str, opening: str, between: str, end: str) -> tuple[str | None, str]:
    """The system's words that stand in a conversation without any, and what stands before a user's words."""
    if not start.startswith(opening) or end.endswith(start):
        return None, _tail(end, start)
    named = opening.replace("system", "user")
    before = named if between.endswith(named) else _shared(between[::-1], end[::-1])[::-1]
    if not (before and end.endswith(before) and start.endswith(between)):
        raise _irregular("the first question is written in another way than those that follow")
    return start[len(opening) : len(start) - len(between)], before


def _tail(end: str, start: str) -> str:
    """What stands before a user's words at the start of a conversation, and likewise after an answer."""
    if not end.endswith(start):
        raise _irregular("the first question is written in another way than those that follow")
    return start


def _shared(one: str, other: str) -> str:
    """What two strings begin with."""
    count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return one[:count]


def _pieces(render: Render, roles: Sequence[str]) -> list[str]:
    """What a template writes before, between and behind the words of these turns."""
    marks = [f"kx{number}qz" for number in range(len(roles))]
    text = render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise _irregular("it leaves out or moves a turn")
        pieces.append(before)
    return [*pieces, text]


_TRIED = (
    [("user", "One line"), ("assistant", "{{ braces }} and {% more %}"), ("user", "Zürich 🦙\n\ntwo lines")],
    [("user", '"""quoted"""\\n'), ("assistant", "a\n```\ncode\n```\nb"), ("user", "x"), ("assistant", "y"), ("user", "z")],
)  # fmt: skip


def _check(turns: Turns, render: Render, bos: str) -> None:
    """Whether other conversations come out as the template writes them."""
    for tried in _TRIED:
        messages = [{"role": role, "content": words} for role, words in tried]
        systems = [None] if turns.system is None else [None, "Be brief.\nAlways."]
        for system in systems:
            own = turns.default_system if system is None else system
            first = [] if own is None else [{"role": "system", "content": own}]
            given = messages if system is None else [*first, *messages]
            if turns.render([*first, *messages]) != render(given).removeprefix(bos):
                raise _irregular("it writes some words otherwise than they stand")


def _irregular(got: str) -> DataError:
    return DataError(
        "this chat template cannot be written as an Ollama template",
        got=got,
        expected="each turn between two strings that are always the same",
        do="serve the file with llama.cpp, which reads the Jinja template inside it, or write TEMPLATE by hand",
    )


def _go(around: tuple[str, str]) -> str:
    return f"{_literal(around[0])}{{{{ .Content }}}}{_literal(around[1])}"


def _literal(text: str) -> str:
    """Text that Go's template language leaves as it stands; one brace might meet another behind it."""
    return text.replace("{", '{{ "{" }}')
