"""JSON against a JSON Schema: the keywords that structured output uses.

A schema with a keyword that is not known here is refused rather than half checked. Known are type, enum, const,
properties, required, additionalProperties, minProperties, maxProperties, items, prefixItems, minItems, maxItems,
uniqueItems, minLength, maxLength, pattern, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, anyOf, oneOf,
allOf, not and local $ref; title, description and the like say nothing about values, and `format` is not checked (draft
2020-12 does not ask for it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from stillroom.checks.json_fields import same
from stillroom.contracts.errors import DataError

_SILENT = {
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format",
    "deprecated", "readOnly", "writeOnly", "strict", "optional",
}  # fmt: skip
_DEEPEST = 64


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _number,
    "integer": lambda value: _number(value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


class Schema:
    """A JSON Schema, read once.

    Raises:
        DataError: it is no schema, or uses a keyword that is not known here.
    """

    def __init__(self, schema: Any, where: str = "the schema") -> None:
        self._root, self._where = schema, where
        self._prove(schema, "")

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, with its place (`items[2].price`), or None."""
        return next(self._problems(value, self._root, "", 0), None)

    def _problems(self, value: Any, schema: Any, at: str, depth: int) -> Iterator[str]:
        name = at.lstrip(".") or "the value"
        if depth > _DEEPEST:
            yield f"{name} is nested too deeply"
            return
        if isinstance(schema, bool):
            if not schema:
                yield f"{name} is not allowed"
            return
        if "$ref" in schema:
            yield from self._problems(value, self._target(schema["$ref"]), at, depth + 1)
        if "type" in schema:
            kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if not any(_TYPES[kind](value) for kind in kinds):
                yield f"{name} is not {' or '.join(kinds)}"
                return
        if "enum" in schema and not any(same(value, item) for item in schema["enum"]):
            yield f"{name} is none of the values allowed"
        if "const" in schema and not same(value, schema["const"]):
            yield f"{name} is not the value asked for"
        yield from self._combined(value, schema, at, name, depth)
        if isinstance(value, dict):
            yield from self._object(value, schema, at, name, depth)
        elif isinstance(value, list):
            yield from self._array(value, schema, at, name, depth)
        elif isinstance(value, str):
            yield from _text(value, schema, name)
        elif _number(value):
            yield from _range(value, schema, name)

    def _combined(self, value: Any, schema: dict[str, Any], at: str, name: str, depth: int) -> Iterator[str]:
        def fits(other: Any) -> bool:
            return next(self._problems(value, other, at, depth + 1), None) is None

        for other in schema.get("allOf", []):
            yield from self._problems(value, other, at, depth + 1)
        if "anyOf" in schema and not any(map(fits, schema["anyOf"])):
            yield f"{name} fits none of the forms allowed"
        if "oneOf" in schema and sum(map(fits, schema["oneOf"])) != 1:
            yield f"{name} does not fit exactly one of the forms allowed"
        if "not" in schema and fits(schema["not"]):
            yield f"{name} is of a form that is excluded"

    def _object(
        self, value: dict[str, Any], schema: dict[str, Any], at: str, name: str, depth: int
    ) -> Iterator[str]:
        for key in schema.get("required", []):
            if key not in value:
                yield f"{at.lstrip('.') + '.' if at else ''}{key} is missing"
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            if key in known or others is not False:
                yield from self._problems(item, known.get(key, others), f"{at}.{key}", depth + 1)
            else:
                yield f"{at.lstrip('.') + '.' if at else ''}{key} is not a known key"
        yield from _count(len(value), schema, "Properties", name)

    def _array(
        self, value: list[Any], schema: dict[str, Any], at: str, name: str, depth: int
    ) -> Iterator[str]:
        first = schema.get("prefixItems", [])
        for place, item in enumerate(value):
            wanted = first[place] if place < len(first) else schema.get("items", True)
            yield from self._problems(item, wanted, f"{at}[{place}]", depth + 1)
        yield from _count(len(value), schema, "Items", name)
        if schema.get("uniqueItems") and any(
            same(a, b) for place, a in enumerate(value) for b in value[:place]
        ):
            yield f"{name} holds an item twice"

    def _target(self, reference: str) -> Any:
        here = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            here = here[part.replace("~1", "/").replace("~0", "~")]
        return here

    def _prove(self, schema: Any, at: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise DataError(
                f"{self._where}{at} is not a JSON Schema", got=str(schema)[:80], expected="an object"
            )
        if unknown := sorted(schema.keys() - _SILENT - _KNOWN):
            raise DataError(
                f"{self._where}{at} uses what is not checked here",
                got=", ".join(unknown),
                expected=", ".join(sorted(_KNOWN)),
                do="leave it out, or check the answers with a function of your own (verify: own)",
            )
        kinds = schema.get("type", [])
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in _TYPES:
                raise DataError(f"{self._where}{at}: there is no type {kind}", expected=", ".join(_TYPES))
        if "$ref" in schema:
            try:
                self._target(schema["$ref"])
            except (KeyError, TypeError):
                raise DataError(
                    f"{self._where}{at}: $ref does not lead anywhere",
                    got=schema["$ref"],
                    expected="#/$defs/NAME",
                ) from None
        for inner, place in _inner(schema):
            self._prove(inner, f"{at}/{place}")


_KNOWN = {
    "$ref", "type", "enum", "const", "properties", "required", "additionalProperties", "minProperties", "maxProperties",
    "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "oneOf", "allOf", "not",
}  # fmt: skip


def _inner(schema: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """The schemas inside a schema, with where they stand."""
    for key in ("properties", "$defs", "definitions"):
        for name, inner in schema.get(key, {}).items():
            yield inner, f"{key}/{name}"
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for place, inner in enumerate(schema.get(key, [])):
            yield inner, f"{key}/{place}"
    for key in ("items", "additionalProperties", "not"):
        if key in schema:
            yield schema[key], key


def _count(count: int, schema: dict[str, Any], what: str, name: str) -> Iterator[str]:
    if count < schema.get(f"min{what}", 0):
        yield f"{name} has fewer than {schema[f'min{what}']} {what.lower()}"
    if count > schema.get(f"max{what}", count):
        yield f"{name} has more than {schema[f'max{what}']} {what.lower()}"


def _text(value: str, schema: dict[str, Any], name: str) -> Iterator[str]:
    yield from _count(len(value), schema, "Length", name)
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{name} does not match {schema['pattern']}"


def _range(value: float, schema: dict[str, Any], name: str) -> Iterator[str]:
    if value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", value - 1):
        yield f"{name} is too small"
    if value > schema.get("maximum", value) or value >= schema.get("exclusiveMaximum", value + 1):
        yield f"{name} is too large"
    step = schema.get("multipleOf")
    if step and Fraction(str(value)) % Fraction(str(step)) != 0:
        yield f"{name} is no multiple of {step}"
