r"""Mathematical answers that are more than a number: do two of them mean the same?

LaTeX and plain notation are read into arithmetic over numbers, pi and variables (never evaluated as Python), and two
expressions are the same where they agree at several points. What cannot be read is compared as text, spacing and size
commands apart, and, where math-verify is installed, by computer algebra.
"""

from __future__ import annotations

import ast
import cmath
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from stillroom.checks.numbers import final_number, final_part, numbers
from stillroom.checks.reasoning import strip_reasoning
from stillroom.checks.symbolic import same_by_algebra

_LONGEST = 400
_TOLERANCE = 1e-9
_POINTS = (0.7390851, 1.3247179, 2.2360679)
_SIZES = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|,|!|;|:|quad|qquad|displaystyle|limits)(?![a-zA-Z])")
_TEXTS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_MIXED = re.compile(r"(?<![\d.])(\d+)\s*(\\[dt]?frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))")
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\]]*)\])?\s*(?:\{([^{}]*)\}|(\w))")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sqrt": cmath.sqrt, "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "log": cmath.log, "ln": cmath.log,
    "exp": cmath.exp, "abs": abs,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip


def same_mathematics(answer_text: str, reference_text: str) -> bool:
    r"""Whether an answer's result is the right one: a number, a fraction, an expression, a tuple, a set or an equation.

    Args:
        answer_text: the whole answer; its result is in \boxed{}, after "the answer is", or its last number.
        reference_text: the right answer, bare or as a worked solution.
    """
    wanted = final_part(reference_text)
    wanted = strip_reasoning(reference_text) if wanted is None else wanted
    given = final_part(answer_text)
    if given is not None and _same(_clean(given), _clean(wanted)):
        return True
    if _is_number(wanted):
        number = final_number(answer_text)
        if number is not None and number == final_number(wanted):
            return True
        return given is not None and not _is_number(given) and same_by_algebra(given, wanted)
    if given is not None and same_by_algebra(given, wanted):
        return True
    return given is None and _same(_clean(strip_reasoning(answer_text)), _clean(wanted))


def _is_number(text: str) -> bool:
    cleaned = re.sub(r"\\[$%!,]|\s|[$€£%°]", "", text)
    return len(numbers(cleaned)) == 1 and not re.search(r"[\\^{}a-zA-Z()\[\]]", cleaned)


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    left, right = _parts(a), _parts(b)
    if left is not None and right is not None:
        if left[0] != right[0] or len(left[1]) != len(right[1]):
            return False
        if left[0] == "{}":  # a set has no order
            rest = list(right[1])
            for item in left[1]:
                found = next((other for other in rest if _same(item, other)), None)
                if found is None:
                    return False
                rest.remove(found)
            return True
        return all(map(_same, left[1], right[1]))
    if (left is None) != (right is None):
        return False
    if re.fullmatch(r"[a-z]=[^=]+", a) and "=" not in b:
        return _same(a[2:], b)  # x = 5 states 5
    if re.fullmatch(r"[a-z]=[^=]+", b) and "=" not in a:
        return _same(a, b[2:])
    first, second = _values(a), _values(b)
    return first is not None and second is not None and all(map(_close, first, second))


def _close(a: complex, b: complex) -> bool:
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(a), abs(b))


def _clean(text: str) -> str:
    """Notation that changes nothing taken out."""
    text = text.replace("\\$", "").replace("\\%", "").lstrip("$ \n").rstrip("$.% \n").replace("%", "")
    text = text.replace("\\{", "⟦").replace("\\}", "⟧")
    text = _TEXTS.sub(r"\1", _SIZES.sub("", text)).replace("−", "-").replace("^\\circ", "").replace("°", "")
    text = (
        re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?<![(\[]\d,)", "", text) if not re.search(r"[(\[⟦]", text) else text
    )
    text = _MIXED.sub(r"(\1+\2)", text)
    for _ in range(8):
        new = _FRACTION.sub(lambda m: f"(({m[1] or m[2]})/({m[3] or m[4]}))", text)
        new = _ROOT.sub(lambda m: f"(({m[2] or m[3]})**(1/({m[1] or 2})))", new)
        if new == text:
            break
        text = new
    for latex, plain in (
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("\\div", "/"),
        ("\\pi", "pi"),
        ("π", "pi"),
        ("\\pm", "±"),
    ):
        text = text.replace(latex, plain)
    return re.sub(r"\s+", "", text.replace("^", "**").replace("\\", ""))


def _parts(text: str) -> tuple[str, list[str]] | None:
    """The brackets and the members of a tuple, an interval, a set or a bare list; None for one value."""
    brackets = ""
    if text[:1] in "([⟦" and text[-1:] in ")]⟧":
        inner = text[1:-1]
        brackets = "{}" if text[0] == "⟦" else text[0] + text[-1]
    else:
        inner = text
    members, depth = [""], 0
    for sign in inner:
        depth += (sign in "([⟦{") - (sign in ")]⟧}")
        if depth < 0:
            return None
        if sign in ",;" and depth == 0:
            members.append("")
        else:
            members[-1] += sign
    return (brackets, members) if len(members) > 1 or brackets == "{}" else None


def _values(text: str) -> list[complex] | None:
    """An expression's values at a few points, or None where it is no expression."""
    source = text.replace("{", "(").replace("}", ")")
    # Products without a sign: 2x, 2(x+1), )( , x y is xy.
    source = re.sub(r"(?<=[\d)])(?=[a-zA-Z(])", "*", source)
    if not source or len(source) > _LONGEST:
        return None
    try:
        tree = ast.parse(source, mode="eval").body
        return [_value(tree, point, 0) for point in _POINTS]
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, point: float, depth: int) -> complex:
    if depth > 60:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return complex(node.value)
    if isinstance(node, ast.Name):
        if node.id == "pi":
            return complex(math.pi)
        if len(node.id) == 1:
            return complex(math.e) if node.id == "e" else complex(point + 0.37 * (ord(node.id) % 29))
        raise ValueError(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, point, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, point, depth + 1), _value(node.right, point, depth + 1)
        return complex(_OPERATORS[type(node.op)](left, right))  # complex powers overflow instead of growing
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            return complex(function(_value(node.args[0], point, depth + 1)))
    raise ValueError("not arithmetic")
