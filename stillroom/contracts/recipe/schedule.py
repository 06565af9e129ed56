"""Numbers that may change in the course of a training."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

Share = Annotated[float, Field(ge=0, le=1)]


def _ordered(value: float | dict[float, float]) -> float | dict[float, float]:
    if not isinstance(value, dict):
        return value
    if not value:
        raise ValueError(
            "a schedule needs at least one share of the training with its value: {0: 1.0, 0.5: 0.0}"
        )
    return dict(sorted(value.items()))


def _form(value: object) -> str:
    return "course" if isinstance(value, dict) else "number"


# Told apart by their form, so that what is wrong is said once and of the form that was meant.
Weight = Annotated[
    Annotated[float, Field(ge=0), Tag("number")]
    | Annotated[dict[Share, Annotated[float, Field(ge=0)]], Tag("course")],
    Discriminator(_form),
    AfterValidator(_ordered),
]
"""A number, or `{share of the training: number}`, straight between the points and level before and after them."""

Positive = Annotated[
    Annotated[float, Field(gt=0), Tag("number")]
    | Annotated[dict[Share, Annotated[float, Field(gt=0)]], Tag("course")],
    Discriminator(_form),
    AfterValidator(_ordered),
]


def value_at(value: float | dict[float, float], progress: float) -> float:
    """What a number is when this share of the training is done, 0 to 1."""
    if not isinstance(value, dict):
        return value
    points = list(value.items())
    if progress <= points[0][0]:
        return points[0][1]
    for (start, low), (end, high) in pairwise(points):
        if progress < end:
            return low + (high - low) * (progress - start) / (end - start)
    return points[-1][1]


def peak(value: float | dict[float, float]) -> float:
    """The highest that a number comes to be."""
    return max(value.values()) if isinstance(value, dict) else value
