'''Ollama's Modelfile: written so that `ollama create` gives the model its own chat template, stops and limits.

The grammar is that of Ollama's `parser/parser.go`: an instruction and its value; a value is bare to the end of the line, or
in "..." or in """...""", both over several lines and closed where a line ends. There are no escapes, and characters that
do not print are dropped while reading, so some values cannot be written. Whether one can is tried, not guessed.
'''

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stillroom.contracts.errors import DataError
from stillroom.gguf.turns import Turns

PLAIN = Turns(("", ""), ("", ""), "", ("", ""))
"""For a model without a chat template: words follow one another as they stand."""

PARAMETERS = frozenset(
    (
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_last_n",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "use_mmap",
        "num_thread",
    )
)
"""What Ollama knows; others are errors there, but for the retired ones, of which it warns."""
RETIRED = frozenset(
    (
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    )
)
_NAMES = frozenset(
    (
        "FROM",
        "PARAMETER",
        "TEMPLATE",
        "SYSTEM",
        "ADAPTER",
        "LICENSE",
        "MESSAGE",
        "DRAFT",
        "RENDERER",
        "PARSER",
        "REQUIRES",
    )
)
_TRIPLE = '"""'


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says. `parameters` may repeat a name (`stop`)."""

    model: str
    template: str | None = None
    system: str | None = None
    parameters: list[tuple[str, str]] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    """Role and words of turns that every conversation begins with."""
    others: dict[str, str] = field(default_factory=dict)
    """ADAPTER, DRAFT, RENDERER, PARSER and REQUIRES, where they are given."""


def write_modelfile(
    model_file: str,
    *,
    turns: Turns | None,
    stops: Sequence[str] = (),
    num_ctx: int | None = None,
    temperature: float | None = None,
    system: str | None = None,
    licence: str | None = None,
) -> str:
    """The text of a Modelfile that lies beside its model.

    Args:
        model_file: name of the .gguf file in the same folder.
        turns: what the model's chat template writes; None where it has none.
        stops: strings that end an answer.
        num_ctx: tokens of context.
        temperature: default sampling temperature.
        system: system message; default that of the chat template, if it brings one.
        licence: text or name of the licence.

    Raises:
        DataError: a system message that the chat template has no place for, or a value that the grammar cannot hold.
    """
    turns = turns or PLAIN
    system = turns.default_system if system is None else system
    if system is not None:
        turns.render([{"role": "system", "content": system}])  # whether there is a place for it
    lines = [f"FROM ./{model_file}", f"TEMPLATE {_quoted('TEMPLATE', turns.go())}"]
    if num_ctx is not None:
        lines.append(f"PARAMETER num_ctx {num_ctx}")
    if temperature is not None:
        lines.append(f"PARAMETER temperature {temperature:g}")
    lines += [f"PARAMETER stop {_quoted('stop', stop)}" for stop in stops]
    if system is not None:
        lines.append(f"SYSTEM {_quoted('SYSTEM', system)}")
    if licence is not None:
        lines.append(f"LICENSE {_quoted('LICENSE', licence)}")
    return "\n".join(lines) + "\n"


def parse_modelfile(text: str) -> Modelfile:
    """Reads a Modelfile as Ollama does.

    Raises:
        DataError: an unknown instruction, parameter or role, an open quotation, or no FROM.
    """
    values: dict[str, list[str]] = {}
    parameters, messages = [], []
    for name, key, value in _instructions(text):
        if name == "PARAMETER":
            if key not in PARAMETERS | RETIRED:
                raise DataError(
                    "Ollama knows no such parameter", got=key, expected=", ".join(sorted(PARAMETERS))
                )
            parameters.append((key, value))
        elif name == "MESSAGE":
            messages.append((key, value))
        else:
            values.setdefault(name, []).append(value)
    if "FROM" not in values:
        raise DataError("a Modelfile needs a FROM line", do="name the model file in it")
    own = ("FROM", "TEMPLATE", "SYSTEM", "LICENSE")
    return Modelfile(
        model=values["FROM"][-1],
        template=values.get("TEMPLATE", [None])[-1],
        system=values.get("SYSTEM", [None])[-1],
        parameters=parameters,
        licences=values.get("LICENSE", []),
        messages=messages,
        others={name: found[-1] for name, found in values.items() if name not in own},
    )


def _instructions(text: str) -> Iterator[tuple[str, str, str]]:
    """(NAME, parameter or role, value) of each instruction; comments and empty lines are skipped."""
    place = 0
    while found := _BEGINNING.match(text, place):
        place = found.end()
        if found["comment"] is not None:
            continue
        name, key = found["name"].upper(), ""
        name = name if name[0].isprintable() else name[1:]  # Ollama drops it only here
        if name not in _NAMES or not found["space"]:
            line = text[found.start("name") :].splitlines()[0]
            raise DataError("not a Modelfile instruction", got=line[:80], expected=", ".join(sorted(_NAMES)))
        if name in ("PARAMETER", "MESSAGE"):
            rest = _KEY.match(text, place)
            if rest is None or (name == "MESSAGE" and rest["key"] not in ("system", "user", "assistant")):
                raise DataError(
                    f"{name} is not followed by {'a name' if name == 'PARAMETER' else 'a role'} and a value",
                    got=text[place : place + 40].partition("\n")[0],
                    expected="num_ctx 4096"
                    if name == "PARAMETER"
                    else "system, user or assistant, and words",
                )
            key, place = rest["key"], rest.end()
        value, place = _value(text, place, name)
        yield name, key, value


_BEGINNING = re.compile(r"[ \t\r\n]*(?:(?P<comment>\#[^\r\n]*)|(?P<name>[^ \t\r\n\#]+)(?P<space>[ \t]?))")
_KEY = re.compile(r"(?P<key>[A-Za-z0-9_]*)[ \t]")


def _value(text: str, place: int, name: str) -> tuple[str, int]:
    """The value that begins here, and where the next line does."""
    first = place
    while True:
        end = min((at for at in (text.find(mark, place) for mark in "\r\n") if at >= 0), default=len(text))
        read = "".join(
            character for character in text[first:end] if character.isprintable() or character in "\t\r\n"
        )
        value = _unquoted(read.strip())
        if value is not None:
            return value, end
        if end == len(text):
            raise DataError(
                "a quotation in the Modelfile is not closed", got=f"{name} {read[:80]}", do="close it"
            )
        place = end + 1


def _unquoted(value: str) -> str | None:
    """What stands between the quotes, if there are any; None where they are not closed."""
    for mark in (_TRIPLE, '"'):
        if value.startswith(mark):
            return (
                value[len(mark) : -len(mark)]
                if len(value) >= 2 * len(mark) and value.endswith(mark)
                else None
            )
    return value


def _quoted(name: str, value: str) -> str:
    """A value in the quotation that gives it back unchanged."""
    text = f"{_TRIPLE}{value}{_TRIPLE}"
    try:
        kept = [found for _, _, found in _instructions(f"{name if name in _NAMES else 'FROM'} {text}\n")]
    except DataError:
        kept = []
    # Three quotes inside a line are read back by today's Ollama; no grammar promises it.
    if _TRIPLE in value or kept != [value]:
        lost = sorted({one for one in value if not one.isprintable() and one not in "\t\r\n"})
        raise DataError(
            f"{name} cannot be written into a Modelfile",
            got=f"the characters {lost}" if lost else "three double quotes in a row",
            expected="plain text: a Modelfile has no escapes",
            do="take them out",
        )
    return text
