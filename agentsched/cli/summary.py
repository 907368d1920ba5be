"""One line about a command, read out of its source text so that nothing is imported for a list."""

from __future__ import annotations

import ast
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint
from pathlib import Path


def summary(entry: EntryPoint) -> str:
    """The first line of the docstring (or typer help) of what an entry names, without importing it.

    Where the source cannot be read, it says which distribution the entry comes from.
    """
    source = _source(entry.module)
    text = _first_line(source, entry.attr) if source is not None else ""
    if text:
        return text
    return f"(from {entry.dist.name})" if entry.dist is not None else ""


def _source(module: str) -> Path | None:
    # importlib.util.find_spec would import the parents; the files beneath a package tell as much.
    top, *rest = module.split(".")
    spec = PathFinder.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


def _first_line(source: Path, attribute: str) -> str:
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    text = ""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name == attribute:
                    text = ast.get_docstring(node) or ""
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                if name == attribute:
                    text = _help_of(call) or ast.get_docstring(tree) or ""
            case _:
                pass
    return text.strip().partition("\n")[0]


def _help_of(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "help" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""
