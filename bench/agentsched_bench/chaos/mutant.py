"""One small change to one module, made while it is imported: nothing on disk is touched.

As a pytest plugin (`-p agentsched_bench.chaos.mutant`) it takes the change from the environment.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any, Final

#: `MODULE:NUMBER`, the number being the change's place in `sites`.
VARIABLE: Final = "AGENTSCHED_MUTANT"

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
_NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


class _Changer(ast.NodeTransformer):
    """Counts the places that could be changed, and changes one of them."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self.places: list[str] = []

    def _is_it(self, node: Any, what: str) -> bool:
        self.places.append(f"line {node.lineno}: {what}")
        return len(self.places) - 1 == self._number

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node  # what only checks is not what is checked

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        other = _COMPARED[type(node.ops[0])]
        if self._is_it(node, f"{type(node.ops[0]).__name__} becomes {other.__name__}"):
            node.ops[0] = other()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        other: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        if self._is_it(node, f"{type(node.op).__name__} becomes {type(other).__name__}"):
            node.op = other
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and self._is_it(node, "not is left out"):
            return node.operand
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        other = _COMPUTED.get(type(node.op))
        if other and self._is_it(node, f"{type(node.op).__name__} becomes {other.__name__}"):
            node.op = other()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            if self._is_it(node, f"{node.value} becomes {not node.value}"):
                return ast.copy_location(ast.Constant(not node.value), node)
        elif isinstance(node.value, int) and self._is_it(node, f"{node.value} is one more"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _NAMES and self._is_it(node, f"{name} becomes {_NAMES[name]}"):
            node.func = ast.copy_location(ast.Name(_NAMES[name], ast.Load()), node.func)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node  # annotations mean nothing at run time


def sites(source: str) -> list[str]:
    """All changes that can be made to a module, in words."""
    changer = _Changer(None)
    changer.visit(ast.parse(source))
    return changer.places


def changed(source: str, number: int) -> ast.AST:
    """The module with one of the changes made."""
    tree: ast.AST = _Changer(number).visit(ast.parse(source))
    return ast.fix_missing_locations(tree)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, number: int) -> None:
        super().__init__(name, path)
        self._number = number

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        tree: Any = changed(self.get_data(path).decode(), self._number)
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, number: int) -> None:
        self._module = module
        self._number = number

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._number)
        return spec


def install(text: str) -> None:
    """Make the change that the text names, at the module's import."""
    module, _, number = text.rpartition(":")
    assert module not in sys.modules, f"{module} was imported before it could be changed"
    sys.meta_path.insert(0, _Finder(module, int(number)))


if VARIABLE in os.environ:
    install(os.environ[VARIABLE])
