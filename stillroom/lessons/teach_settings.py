"""The settings of `stillroom teach`: the recipe's own `teacher` and `teach` sections, without the rest of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe, parse_yaml
from stillroom.contracts.recipe import Teach, Teacher


def teach_settings(
    teacher: dict[str, Any], settings: dict[str, Any], overrides: Sequence[str] = ()
) -> tuple[Teacher, Teach]:
    """Both sections, checked as in a recipe.

    Args:
        teacher: keys of `teacher`.
        settings: keys of `teach`.
        overrides: `teach.key=value` or `teacher.key=value`, the value in YAML.

    Raises:
        RecipeError: a key is unknown or a value out of range.
    """
    # Text alone is asked for: no student is there whose tokens a signal could be of.
    sections = {"teacher": teacher, "teach": {**settings, "signal": {"kind": "none"}}}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or section not in sections or "." in name:
            raise RecipeError(
                f"--set {override} is not understood", expected="--set teach.key=value or teacher.key=value"
            )
        sections[section][name] = parse_yaml(text, f"--set {override}")
    recipe = build_recipe(
        {
            **sections,
            "name": "teach",
            "student": {"model": "none"},
            "prompts": [{"file": "none"}],
            "distil": {"loss": {"hard": 1, "soft": 0}},
        },
        "the settings",
    )
    return recipe.teacher, recipe.teach
