"""The plan of the house: imports go down only, rooms do not import their neighbours, and every setting is read."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stillroom"
FLOORS = {
    **dict.fromkeys(["contracts", "__init__"], 0),
    **dict.fromkeys(["losses", "checks", "quants", "stats", "ranks"], 1),
    "signals": 2,
    "routing": 2,
    "models": 3,
    **dict.fromkeys(
        ["lessons", "training", "gguf", "onnx", "evaluation", "serving", "planning", "report"],
        4,
    ),
    "stages": 5,
    **dict.fromkeys(["cli", "pipeline", "display", "__main__"], 6),
}
TOP = 6
SHARED = ("context", "rows", "specs")
"""What is no stage among the stages."""
ALLOWED_OUTSIDE = {"contracts": {"pydantic", "yaml"}}


@dataclass(frozen=True)
class Edge:
    """`module` imports `target` in this line; `outside` where the target is not of this package."""

    module: str
    target: str
    line: int
    outside: bool = False


def modules(package: Path) -> dict[str, Path]:
    """Every module by its name inside the package: `losses.fused`, `losses` for its __init__."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def edges(package: Path) -> list[Edge]:
    """Every import, those inside functions and under TYPE_CHECKING included."""
    known = modules(package)
    return [edge for name, path in known.items() for edge in _edges_of(package.name, name, path, known)]


def _edges_of(root: str, module: str, path: Path, known: dict[str, Path]) -> Iterator[Edge]:
    home = [root, *module.split(".")]
    if module == "__init__" or path.name != "__init__.py":
        home = home[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = home[: len(home) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first != root:
                yield Edge(module, first, node.lineno, outside=True)
                continue
            while rest and rest not in known:  # a name inside a module
                rest = rest.rpartition(".")[0]
            yield Edge(module, rest or "__init__", node.lineno)


def faults(package: Path) -> list[str]:
    """Every import that the plan forbids, one phrase each."""
    found = []
    inside = [edge for edge in edges(package) if not edge.outside]
    for module in modules(package):
        if _room(module) not in FLOORS:
            found.append(f"{module}: no floor is known for this room")
    for edge in inside:
        here, there = _room(edge.module), _room(edge.target)
        if here not in FLOORS or there not in FLOORS:
            continue
        where = f"{edge.module}:{edge.line} imports {edge.target}"
        if FLOORS[there] > FLOORS[here]:
            found.append(f"{where}: upward")
        elif here != there and FLOORS[there] == FLOORS[here] not in (0, TOP):
            found.append(f"{where}: sideways")
        elif here == "losses" and there != "losses":
            found.append(f"{where}: losses imports nothing of ours")
        elif here == there == "stages" and _stage(edge.target) not in (*SHARED, _stage(edge.module)):
            found.append(f"{where}: stages meet through files")
    for edge in edges(package):
        allowed = ALLOWED_OUTSIDE.get(_room(edge.module))
        if edge.outside and allowed is not None and edge.target not in allowed | sys.stdlib_module_names:
            found.append(f"{edge.module}:{edge.line} imports {edge.target}: not a dependency of this room")
    return found + [" -> ".join(circle) + ": a circle" for circle in circles(inside)]


def _room(module: str) -> str:
    return module.partition(".")[0]


def _stage(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circles(inside: list[Edge]) -> list[list[str]]:
    """Modules that import each other in a ring; each ring once."""
    graph: dict[str, list[str]] = {}
    for edge in inside:
        if edge.target != edge.module:
            graph.setdefault(edge.module, []).append(edge.target)
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for target in graph.get(module, []):
            walk(target, [*path, module])
        done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def test_imports_go_down_only() -> None:
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"losses/a.py": "from stillroom.signals import book"}, "upward"),
        ({"losses/a.py": "def f():\n    import stillroom.signals.book"}, "upward"),
        ({"losses/a.py": "from ..signals.book import Book"}, "upward"),
        ({"losses/__init__.py": "from ..signals import book"}, "upward"),
        ({"losses/a.py": "from stillroom import signals"}, "upward"),
        ({"losses/a.py": "if TYPE_CHECKING:\n    from stillroom.cli import main"}, "upward"),
        ({"gguf/a.py": "from stillroom.training import x"}, "sideways"),
        (
            {"losses/a.py": "from stillroom.contracts.errors import UserError"},
            "losses imports nothing of ours",
        ),
        ({"stages/distil.py": "from stillroom.stages import teach"}, "stages meet through files"),
        ({"contracts/a.py": "import numpy.linalg"}, "not a dependency of this room"),
        ({"training/a.py": "from . import b", "training/b.py": "from .a import x"}, "a circle"),
        ({"pipeline.py": "import stillroom.cli"}, "a circle"),
        ({"utils.py": ""}, "no floor is known"),
    ],
)
def test_the_walk_finds_each_kind_of_fault(tmp_path: Path, files: dict[str, str], fault: str) -> None:
    package = tmp_path / "stillroom"
    sound = {
        "__init__.py": "",
        "losses/__init__.py": "from stillroom.losses import a\nimport torch",
        "losses/a.py": "",
        "signals/__init__.py": "",
        "signals/book.py": "from stillroom.losses.a import x\nfrom stillroom.contracts.a import UserError",
        "training/__init__.py": "",
        "gguf/__init__.py": "",
        "contracts/__init__.py": "",
        "contracts/a.py": "import json, yaml\nfrom pydantic import BaseModel",
        "stages/__init__.py": "",
        "stages/context.py": "",
        "stages/teach.py": "from .context import x\nfrom stillroom.signals import book",
        "cli.py": "from stillroom import __version__\nfrom stillroom import pipeline",
        "pipeline.py": "from stillroom.stages import teach",
    }
    for name, text in sound.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert faults(package) == []
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert any(fault in found for found in faults(package))
