"""Is this answer right? Text to the letter, JSON field by field."""

from stillroom.checks.exact import equal_text
from stillroom.checks.json_fields import JsonVerdict, compare, parse_object
from stillroom.checks.reasoning import strip_reasoning

__all__ = ["JsonVerdict", "compare", "equal_text", "parse_object", "strip_reasoning"]
