"""Every setting of the recipe is read somewhere: none is validated and documented and then used by nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest

from stillroom.contracts import recipe as recipe_module
from stillroom.contracts.recipe import Recipe, Section

PACKAGE = Path(__file__).parents[1] / "stillroom"
SECTIONS = {kind.__name__: kind for kind in Section.__subclasses__()}
EVERY = {(name, field) for name, kind in SECTIONS.items() for field in kind.model_fields}


def section_of(annotation: Any) -> type[Section] | None:
    """The section in an annotation: `Lora | None`, `list[Task]`, `Teach`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (list, Union, UnionType):
        return next(filter(None, map(section_of, get_args(annotation))), None)
    return None


class Reader(ast.NodeVisitor):
    """Which settings one module reads.

    Names are followed by their annotations (`settings: Distil`), by what they are assigned (`loss =
    recipe.distil.loss`) and by loops (`for task in recipe.evaluate.tasks`). A name that means two sections in one
    module counts as either. Anything called `recipe` is the recipe. A section handed on whole counts where its
    fields are read.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.reads: set[tuple[str, str]] = set()
        self.names: dict[str, set[type[Section]]] = {"recipe": {Recipe}}
        known = 0
        while known != (
            known := sum(map(len, self.names.values()))
        ):  # a name may be used above what gives it
            for node in ast.walk(tree):
                self._learn(node)
        self.visit(tree)

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.arg) and node.annotation is not None:
            self._name(node.arg, self._annotated(node.annotation))
        elif isinstance(node, ast.AnnAssign):
            self._name(node.target, self._annotated(node.annotation))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for one, value in zip(target.elts, node.value.elts, strict=False):
                        self._name(one, self._kinds(value))
                else:
                    self._name(target, self._kinds(node.value))
        elif isinstance(node, ast.NamedExpr):
            self._name(node.target, self._kinds(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            self._name(node.target, self._kinds(node.iter))

    def _name(self, target: ast.expr | str, kinds: set[type[Section]]) -> None:
        name = target if isinstance(target, str) else getattr(target, "id", getattr(target, "attr", None))
        if name is not None and kinds:
            self.names.setdefault(name, set()).update(kinds)

    def _annotated(self, annotation: ast.expr) -> set[type[Section]]:
        words = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        words |= {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}
        return {SECTIONS[word] for word in words & SECTIONS.keys()}

    def _kinds(self, value: ast.expr) -> set[type[Section]]:
        """The sections that an expression may be, or may be a list of."""
        if isinstance(value, ast.Name):
            return self.names.get(value.id, set())
        if isinstance(value, ast.Attribute):
            bases = {base for base in self._kinds(value.value) if value.attr in base.model_fields}
            inner = {section_of(base.model_fields[value.attr].annotation) for base in bases} - {None}
            return {kind for kind in inner if kind} if bases else self.names.get(value.attr, set())
        if isinstance(value, ast.Subscript):
            return self._kinds(value.value)
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.args:
            return self._kinds(value.args[0])  # enumerate(tasks), list(tasks)
        return set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return
        for kind in self._kinds(node.value):
            fields = {node.attr} if node.attr in kind.model_fields else properties(kind).get(node.attr, set())
            self.reads |= {(kind.__name__, field) for field in fields}


def properties(kind: type[Section]) -> dict[str, set[str]]:
    """What each property of a section reads of it."""
    found = {}
    for name, member in vars(kind).items():
        if isinstance(member, property) and member.fget is not None:
            tree = ast.parse(textwrap.dedent(inspect.getsource(member.fget)))
            found[name] = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
    return found


def read_settings() -> set[tuple[str, str]]:
    reads = set()
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "contracts" not in path.parents:
            reads |= Reader(ast.parse(path.read_text(encoding="utf-8"))).reads
    return reads


NOT_YET_READ: list[str] = []
"""Settings that nothing reads so far; to be emptied, never to grow."""


def test_every_section_can_be_imported_from_the_recipe() -> None:
    assert SECTIONS.keys() <= set(recipe_module.__all__)


def test_every_setting_of_the_recipe_is_read() -> None:
    unread = sorted(f"{section}.{field}" for section, field in EVERY - read_settings())
    assert unread == NOT_YET_READ


def sources() -> Iterator[tuple[str, set[tuple[str, str]]]]:
    yield (
        "def f(context): return context.recipe.distil.loss.hard",
        {
            ("Recipe", "distil"),
            ("Distil", "loss"),
            ("Loss", "hard"),
        },
    )
    yield "def f(settings: Distil): return settings.steps", {("Distil", "steps")}
    yield "def f(lora: Lora | None): return lora.rank", {("Lora", "rank")}
    yield "def f(other): return other.steps", set()
    yield "def f(tasks: list[Task]): return [task.limit for task in tasks]", {("Task", "limit")}
    yield "class A:\n    settings: Teach\n    def f(self): return self.settings.top_p", {("Teach", "top_p")}
    yield "def f(task: Task): return task.title", {("Task", "name"), ("Task", "file"), ("Task", "score")}
    yield (
        "def f(recipe):\n    t = recipe.teach\n    return t.signal.kind",
        {
            ("Recipe", "teach"),
            ("Teach", "signal"),
            ("Signal", "kind"),
        },
    )


@pytest.mark.parametrize(("source", "expected"), sources())
def test_the_reader_knows_what_a_line_reads(source: str, expected: set[tuple[str, str]]) -> None:
    assert Reader(ast.parse(source)).reads == expected
