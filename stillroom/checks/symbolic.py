"""math-verify's opinion, where it is installed: computer algebra for what plain arithmetic cannot tell apart or read."""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import cache
from importlib.util import find_spec

_SECONDS = 5
_LONGEST = 400


@cache
def installed() -> bool:
    """Whether math-verify is there."""
    return find_spec("math_verify") is not None


def same_by_algebra(given: str, wanted: str) -> bool:
    """Whether computer algebra finds two results the same; False where it is not installed, or cannot tell in time.

    Args:
        given, wanted: bare results, LaTeX or plain.
    """
    # Its limits of time are alarms, which only the main thread can have; without them a tower of powers would never end.
    if not installed() or threading.current_thread() is not threading.main_thread():
        return False
    if max(len(given), len(wanted)) > _LONGEST:
        return False
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    with contextlib.suppress(Exception):  # sympy raises of every kind, on what models write
        sides = [parse(rf"\boxed{{{text}}}", parsing_timeout=_SECONDS) for text in (wanted, given)]
        return all(sides) and bool(verify(*sides, timeout_seconds=_SECONDS))
    return False
