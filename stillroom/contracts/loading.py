"""From YAML and `--set` to a Recipe, with errors that suggest the right key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.recipe import Recipe

_LARGEST = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-4 is a number (there it is text) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of `recipe.yaml` in a folder.

    Args:
        path: the file or folder. Paths inside the recipe are relative to it.
        overrides: `dotted.key=value` strings, the value in YAML: `distil.learning_rate=1e-4`.

    Raises:
        RecipeError: it is missing, not YAML, has an unknown key or a value out of range.
    """
    if path.is_dir():
        path = path / "recipe.yaml"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe at {path}", do="give the path of a recipe, or make one: stillroom init NAME"
        ) from None
    if len(text) > _LARGEST:
        raise RecipeError(
            f"{path} is not a recipe", got=f"{len(text):,} bytes", expected="at most 1 MiB of YAML"
        )
    tree = parse_yaml(text.decode("utf-8", errors="replace"), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path} is not a recipe", got=type(tree).__name__, expected="keys such as name, teacher"
        )
    for override in overrides:
        _set(tree, override)
    return build_recipe(tree, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Plain YAML: no tags, no aliases (which a few lines can blow up to gigabytes)."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise RecipeError(f"{where} uses YAML aliases (*name)", expected="each value written out")
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month, 5,000 digits
        problem = str(error).replace("\n", " ") or type(error).__name__
        raise RecipeError(
            f"{where} is not YAML", got=problem, do="check indentation and quotes there"
        ) from None


def build_recipe(tree: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from its plain tree.

    Raises:
        RecipeError: with a suggestion where a key is unknown.
    """
    tree = _teachers_apart(tree)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, where, tree) from None


def _teachers_apart(tree: dict[str, Any]) -> dict[str, Any]:
    """A list of teachers as the first one and the others."""
    listed = tree.get("teacher")
    if not isinstance(listed, list) or not listed or "more_teachers" in tree:
        return tree
    return {**tree, "teacher": listed[0], **({"more_teachers": listed[1:]} if listed[1:] else {})}


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override} is not understood", expected="--set key.key=value")
    *parents, last = key.strip().split(".")
    here: Any = tree
    for parent in parents:
        here = here.setdefault(parent, {}) if isinstance(here, dict) else None
        if not isinstance(here, dict):
            raise RecipeError(
                f"--set {override} does not fit", got=f"{parent} is not a section of the recipe"
            )
    here[last] = parse_yaml(text, f"--set {override}")


def _explain(error: ValidationError, where: str, tree: dict[str, Any]) -> RecipeError:
    # An unknown key often is the misspelling of a missing one: it comes first.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    location = _written(first["loc"], tree, first["type"] == "missing")
    key = ".".join(str(part) for part in location) or "the recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = sorted(_fields(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        do = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
        return RecipeError(
            f"{where}: unknown key {key}{more}", got=location[-1], expected="a known key", do=do
        )
    if first["type"] == "missing":
        return RecipeError(f"{where}: {key} is missing{more}", do=f"add {key} to the recipe")
    message = first["msg"].removeprefix("Value error, ")
    got = None if isinstance(first["input"], dict) else first["input"]
    if isinstance(got, str):
        got = re.sub(r"//[^/]*@", "//", got)  # a password in a URL is not repeated
    return RecipeError(f"{where}: {key} is not right{more}", got=got, expected=message)


def _written(location: Sequence[str | int], tree: Any, missing: bool) -> list[str | int]:
    """A place as the recipe has it: without pydantic's names for the forms that a value may take."""
    *outer, last = location or ("",)
    found: list[str | int] = []
    for part in outer if missing else location:
        within = part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int)
        if within:
            found.append(part)
            tree = tree[part]
    return [*found, last] if missing else found


def _fields(location: Sequence[str | int]) -> set[str]:
    """The known keys of the section at a location."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        model = next(_sections(model.model_fields[part].annotation), None)
        if model is None:
            return set()
    return set(model.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type allows, however deep in lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
