'''Ollama's Modelfile: written so that `ollama create` gives the model its own chat template, stops and limits.

The grammar is Ollama's `parser/parser.go`: one instruction a line; a value is bare to the end of the line, or in "..."
or in """...""", the last two over several lines. There are no escapes, so a value that holds three quotes in a row
cannot be written, nor can characters that Ollama drops while reading (hard spaces, zero-width joiners).
'''

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stillroom.contracts.errors import DataError

CHATML_TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML in Go's template language, which is what Ollama reads."""

PLAIN_TEMPLATE = "{{ .Prompt }}"
"""For a model without a chat template: the prompt as it stands."""

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


def write_modelfile(
    model_file: str,
    *,
    chat_template: str | None,
    stops: Sequence[str] = (),
    num_ctx: int | None = None,
    temperature: float | None = None,
    system: str | None = None,
    licence: str | None = None,
) -> str:
    """The text of a Modelfile that lies beside its model.

    Args:
        model_file: name of the .gguf file in the same folder.
        chat_template: the model's Jinja template, or None. ChatML is recognised and written in Ollama's language;
            without a template the prompt is passed on as it stands.
        stops: strings that end an answer; for ChatML `<|im_end|>` is always among them.
        num_ctx: tokens of context.
        temperature: default sampling temperature.
        system: system message.
        licence: text or name of the licence.

    Raises:
        DataError: a chat template that is not ChatML, or a value that the grammar cannot hold.
    """
    if chat_template is not None and not is_chatml(chat_template):
        raise DataError(
            "only ChatML templates can be written as an Ollama template",
            got=chat_template[:80],
            expected="a template with <|im_start|> and <|im_end|>",
            do="serve the file with llama.cpp, which reads the Jinja template inside it, or write TEMPLATE by hand",
        )
    all_stops = list(stops)
    if chat_template is not None and "<|im_end|>" not in all_stops:
        all_stops.append("<|im_end|>")
    parts = [
        f"FROM ./{model_file}",
        "TEMPLATE " + _quoted("TEMPLATE", PLAIN_TEMPLATE if chat_template is None else CHATML_TEMPLATE),
    ]
    if num_ctx is not None:
        parts.append(f"PARAMETER num_ctx {num_ctx}")
    if temperature is not None:
        parts.append(f"PARAMETER temperature {temperature:g}")
    parts += [f"PARAMETER stop {_quoted('stop', stop)}" for stop in all_stops]
    if system is not None:
        parts.append("SYSTEM " + _quoted("SYSTEM", system))
    if licence is not None:
        parts.append("LICENSE " + _quoted("LICENSE", licence))
    return "\n".join(parts) + "\n"


def is_chatml(chat_template: str) -> bool:
    """Whether a Jinja chat template marks turns with <|im_start|> and <|im_end|>."""
    return "<|im_start|>" in chat_template and "<|im_end|>" in chat_template


def parse_modelfile(text: str) -> Modelfile:
    """Reads a Modelfile as Ollama does.

    Raises:
        DataError: an unknown instruction, an open quotation, or no FROM.
    """
    values: dict[str, list[str]] = {}
    parameters = []
    for name, value in _instructions(text):
        if name == "PARAMETER":
            key, _, rest = value.partition(" ")
            parameters.append((key.lower(), _unquoted(rest.strip())))
        else:
            values.setdefault(name, []).append(_unquoted(value))
    if "FROM" not in values:
        raise DataError("a Modelfile needs a FROM line", do="name the model file in it")
    return Modelfile(
        model=values["FROM"][-1],
        template=values.get("TEMPLATE", [None])[-1],
        system=values.get("SYSTEM", [None])[-1],
        parameters=parameters,
        licences=values.get("LICENSE", []),
    )


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(NAME, raw value) of each instruction; comments and empty lines are skipped."""
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.match(r"\s*(\w+)[ \t]+(.*)", line)
        if match is None or match[1].upper() not in _NAMES:
            raise DataError("not a Modelfile instruction", got=line[:80], expected=", ".join(sorted(_NAMES)))
        value = match[2]
        while _is_open(match[1].upper(), value):
            following = next(lines, None)
            if following is None:
                raise DataError("a quotation in the Modelfile is not closed", got=line[:80], do="close it")
            value += "\n" + following
        yield match[1].upper(), value.strip()


def _is_open(name: str, value: str) -> bool:
    """Whether a quoted value has begun and not ended."""
    if name in ("PARAMETER", "MESSAGE"):
        value = value.partition(" ")[2]
    value = value.strip()
    mark = next((mark for mark in (_TRIPLE, '"') if value.startswith(mark)), None)
    return mark is not None and (len(value) < 2 * len(mark) or not value.endswith(mark))


def _unquoted(value: str) -> str:
    for mark in (_TRIPLE, '"'):
        if len(value) >= 2 * len(mark) and value.startswith(mark) and value.endswith(mark):
            return value[len(mark) : -len(mark)]
    return value


def _quoted(name: str, value: str) -> str:
    """A value in the quotation that gives it back unchanged."""
    lost = sorted(
        {character for character in value if not character.isprintable() and character not in "\t\n"}
    )
    if _TRIPLE in value or lost:
        raise DataError(
            f"{name} cannot be written into a Modelfile",
            got="three double quotes in a row" if _TRIPLE in value else f"the characters {lost}",
            expected="plain text: a Modelfile has no escapes",
            do="take them out",
        )
    return f"{_TRIPLE}{value}{_TRIPLE}"
