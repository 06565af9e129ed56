"""Write what the documentation takes from the code: docs/recipe.md, docs/recipe.schema.json and docs/cli.md.

python tools/make_docs.py           # write them
python tools/make_docs.py --check   # say whether they are up to date; exit code 1 if not
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"


def recipe_page() -> str:
    """Every key of the recipe, a table a section."""
    lines = [
        "# The recipe",
        "",
        "One YAML file describes a whole distillation. Every key, its default and what it does; unknown keys are errors.",
        "`--set key.key=value` overrides any of them. Editors can check a recipe against"
        " [recipe.schema.json](recipe.schema.json).",
        "This page is made from the code by `make docs`.",
    ]
    for path, model in sections(Recipe):
        lines += ["", f"## {path or 'Top level'}", "", (model.__doc__ or "").strip(), ""]
        lines += ["| key | default | what it does |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = (
                "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
            )
            description = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{name}` | {default} | {choices(field.annotation)}{description} |")
    return "\n".join(lines) + "\n"


def sections(model: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    """The model and every model inside it, with dotted paths."""
    found = [(path, model)]
    for name, field in model.model_fields.items():
        for inner in inner_models(field.annotation):
            found += sections(inner, f"{path}.{name}" if path else name)
    return found


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    """Models in an annotation such as `list[Task] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in inner_models(part)]


def choices(annotation: Any) -> str:
    """The values of a Literal that the description does not list."""
    values = [value for value in get_args(annotation) if isinstance(value, str)]
    return f"One of {', '.join(f'`{value}`' for value in values)}. " if values else ""


def shown(default: Any) -> str:
    """A default as it stands in YAML."""
    if isinstance(default, BaseModel):
        return "see below"
    return "" if default is None else f"`{json.dumps(default)}`"


def cli_page() -> str:
    """The help of every command."""
    runner = CliRunner()
    lines = ["# Commands", "", "What `--help` says; this page is made from it by `make docs`."]
    for words in commands(get_command(app)):
        text = runner.invoke(app, [*words, "--help"], prog_name="stillroom", terminal_width=100).output
        body = "\n".join(line.rstrip() for line in text.strip().splitlines())
        lines += ["", f"## {' '.join(['stillroom', *words])}", "", "```", body, "```"]
    return "\n".join(lines) + "\n"


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of the command itself and of every one inside it."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def pages() -> dict[str, str]:
    """Every generated file of docs/ and its content."""
    schema = json.dumps(Recipe.model_json_schema(), indent=2) + "\n"
    return {"recipe.md": recipe_page(), "recipe.schema.json": schema, "cli.md": cli_page()}


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    stale = []
    check = parser.parse_args().check
    for name, content in pages().items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            stale.append(name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run make docs")


if __name__ == "__main__":
    main()
