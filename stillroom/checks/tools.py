"""Tool calls: read from an answer, held against the tools' declarations, and against the right calls where known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.checks.json_fields import same
from stillroom.checks.reasoning import strip_reasoning
from stillroom.checks.schema import Schema
from stillroom.contracts.errors import DataError

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_FENCED = re.compile(r"```(?:json|tool_call)?\s*\n(.*?)\n\s*```", re.S)
# Declarations are written with the type names of several languages.
_TYPE_NAMES = {
    "dict": "object", "float": "number", "double": "number", "int": "integer", "long": "integer", "str": "string",
    "bool": "boolean", "list": "array", "tuple": "array", "HashMap": "object", "String": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]


class Tools:
    """Declared tools: OpenAI's form ({"type": "function", "function": {...}}) or bare {"name", "parameters"} objects.

    Raises:
        DataError: a declaration has no name, or its parameters are no JSON Schema.
    """

    def __init__(self, declarations: Iterable[Mapping[str, Any]]) -> None:
        self._parameters: dict[str, Schema] = {}
        for declaration in declarations:
            function = declaration.get("function", declaration)
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(name, str):
                raise DataError(
                    "a tool's declaration has no name",
                    got=str(declaration)[:80],
                    expected='{"name": "...", "parameters": {"type": "object", "properties": {...}}}',
                )
            schema = {
                "type": "object",
                "additionalProperties": False,
                **_schema(function.get("parameters") or {}),
            }
            self._parameters[name] = Schema(schema, f"the parameters of {name}")

    def problem(self, call: Call) -> str | None:
        """Why a call does not fit its declaration, or None."""
        if call.name not in self._parameters:
            return f"there is no tool {call.name}"
        found = self._parameters[call.name].problem(call.arguments)
        return f"{call.name}: {found}" if found else None


def tool_calls(message: Mapping[str, Any]) -> list[Call] | None:
    """The calls of an assistant's turn; [] where it makes none, None where it tries and is not understood.

    Read are the turn's `tool_calls` (OpenAI's form), else <tool_call> tags, a fenced or bare JSON object or list with
    `name` and `arguments` (or `parameters`), or objects of the form {"tool": {arguments}}.
    """
    if message.get("tool_calls"):
        return _calls(message["tool_calls"])
    text = strip_reasoning(str(message.get("content") or ""))
    if "<tool_call>" in text:
        parts = _TAGGED.findall(text)
    elif fenced := _FENCED.findall(text):
        parts = fenced
    elif text.startswith(("{", "[")):
        parts = [text]
    else:
        return []
    calls: list[Call] = []
    for part in parts or [""]:
        try:
            found = _calls(json.loads(part))
        except (ValueError, RecursionError):
            return None
        if found is None:
            return None
        calls += found
    return calls


def same_calls(given: list[Call], wanted: list[dict[str, Any]]) -> bool:
    """Whether calls are the right ones, in any order.

    Args:
        given: the answer's calls.
        wanted: [{"tool": {"argument": value}}], or with a list of the values allowed for each argument, as BFCL publishes
            them; "" among them means that the argument may be left out.
    """
    right = [(name, allowed) for call in wanted for name, allowed in call.items()]
    if len(given) != len(right):
        return False
    taken: dict[int, int] = {}  # which wanted call each given one stands for

    def place(number: int, tried: set[int]) -> bool:
        """Find a given call for a wanted one; one that is taken may be handed on (a matching by augmenting paths)."""
        name, allowed = right[number]
        for at, call in enumerate(given):
            if at not in tried and call.name == name and _fits(call.arguments, allowed):
                tried.add(at)
                if at not in taken or place(taken[at], tried):
                    taken[at] = number
                    return True
        return False

    return all(place(number, set()) for number in range(len(right)))


def wanted_calls(reference: str) -> list[dict[str, Any]] | None:
    """The right calls of a reference's JSON text, in the form that `same_calls` takes; None where it is none.

    A list of {"tool": {"argument": [allowed, ...]}}, or calls in any form that `tool_calls` reads.
    """
    try:
        value = json.loads(reference)
    except ValueError:
        value = None
    if isinstance(value, list) and all(isinstance(call, dict) and len(call) == 1 for call in value):
        return value
    calls = tool_calls({"content": reference})
    if not calls:
        return None
    return [{call.name: {key: [item] for key, item in call.arguments.items()}} for call in calls]


def _fits(given: dict[str, Any], allowed: dict[str, list[Any]]) -> bool:
    if given.keys() - allowed.keys():
        return False
    for key, values in allowed.items():
        if key not in given:
            if values and "" not in values:
                return False
        elif not any(_same_value(given[key], value) for value in values):
            return False
    return True


def _same_value(given: Any, wanted: Any) -> bool:
    """Equality of arguments: texts whatever their case, spacing and punctuation; nested values may list alternatives."""
    if isinstance(given, str) and isinstance(wanted, str):
        return _plain(given) == _plain(wanted)
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(_same_value, given, wanted))
    if isinstance(given, dict) and isinstance(wanted, dict):
        alternatives = {key: value if isinstance(value, list) else [value] for key, value in wanted.items()}
        return _fits(given, alternatives)
    return same(given, wanted)


def _plain(text: str) -> str:
    return re.sub(r"[\s,./_*^'\"-]", "", text).casefold()


def _calls(value: Any) -> list[Call] | None:
    items = value if isinstance(value, list) else [value]
    found = [_call(item) for item in items]
    return None if None in found else [call for call in found if call is not None]


def _call(item: Any) -> Call | None:
    if not isinstance(item, dict):
        return None
    function = item.get("function", item)
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        name, arguments = function["name"], function.get("arguments", function.get("parameters", {}))
    elif len(item) == 1:
        name, arguments = next(iter(item.items()))
    else:
        return None
    if isinstance(arguments, str):  # OpenAI's form carries JSON text
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return None
    return Call(name, arguments) if isinstance(arguments, dict) else None


def _schema(value: Any) -> Any:
    """A declaration's parameters as JSON Schema: other languages' type names, and `any`, translated."""
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {
        key: _schema(item) if key not in ("enum", "default", "const") else item for key, item in value.items()
    }
    kind = found.get("type")
    if kind == "any":
        del found["type"]
    elif isinstance(kind, str):
        found["type"] = _TYPE_NAMES.get(kind, kind)
    if found.get("type") == "object" and "properties" not in found:
        found.pop("required", None)
    return found
