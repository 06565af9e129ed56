"""The templates and what they may call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from stillroom.report import rows
from stillroom.report.verdict import span_points


def render(template: str, **values: Any) -> str:
    """A template filled in.

    HTML is always escaped, since samples hold whatever people and models wrote; Markdown never is.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


_FILTERS: dict[str, Callable[..., Any]] = {
    "percent": rows.percent,
    "points": rows.points,
    "span": rows.span,
    "span_points": span_points,
    "chance": rows.chance,
    "number": rows.number,
    "nats": rows.nats,
    "change": rows.change,
    "speed": rows.speed,
    "data_size": rows.data_size,
    "people_count": rows.people_count,
    "model_name": rows.model_name,
    "metric_name": rows.metric_name,
}

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.report"),
    autoescape=lambda name: name is None or not name.endswith(".md"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= _FILTERS
_ENVIRONMENT.tests["contains"] = lambda container, item: item in container
