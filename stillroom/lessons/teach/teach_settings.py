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


def check_ways(teacher: Teacher, settings: Teach) -> None:
    """Refuse settings that only an API can follow where there is none, and parameters that would waste its answers.

    Raises:
        RecipeError: there is one.
    """
    if teacher.api:
        _check_parameters(settings)
        return
    wanted = {
        "parameters": settings.parameters,
        "batch_endpoint": settings.batch_endpoint,
        "requests_per_minute": settings.requests_per_minute,
        "tokens_per_minute": settings.tokens_per_minute,
    }
    for name, value in wanted.items():
        if value:
            raise RecipeError(
                f"teach.{name} is for a teacher behind an API",
                got=f"the local teacher {teacher.model}",
                do=f"leave teach.{name} out, or name the API in teacher.api",
            )


def _check_parameters(settings: Teach) -> None:
    """`n` would pay for answers that nobody reads, `stream` gives what is not read, a limit the bill does not know of."""
    instead = {
        "n": "teach.samples: each is a request that is kept and resumed by itself",
        "stream": "leave it out: whole answers are read",
        "model": "teacher.model",
        "messages": "prompts and teach.system",
        "max_tokens": "teach.max_new_tokens",
        "max_completion_tokens": "teach.max_new_tokens; the API's own name for it is found out",
    }
    for name, value in settings.parameters.items():
        if name in instead and value not in (None, False):
            raise RecipeError(f"teach.parameters.{name} does not work here", got=value, do=instead[name])
