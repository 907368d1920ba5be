"""The tree stays small and clean: sizes, unfinished work, machine paths, dead modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = (
    ROOT,
    ROOT / "graphs",
    ROOT / "policies",
    ROOT / "adapters",
    ROOT / "bench",
)
PACKAGES = (
    ROOT / "agentsched",
    ROOT / "graphs/agentsched_graphs",
    ROOT / "policies/agentsched_policies",
    ROOT / "adapters/agentsched_adapters",
    ROOT / "bench/agentsched_bench",
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".cfg", ".txt", ""}

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

# Written so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(FIX" + "ME|XX" + "X|TO" + "DO|HA" + "CK)" + r"\b")
MACHINE_PATH = re.compile(r"(?<![\w.~])/(w[o]rk|r[o]{2}t|U[s]ers|h[o]me)/[\w.]")
REGISTRY = re.compile("(--index" + "-url|--extra-index" + r"-url|https?://[\w.-]*py" + "pi)")


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def texts() -> Iterator[Path]:
    """Everything that people wrote in this tree."""
    folders = [*PACKAGES, *(ROOT / name for name in ("tests", "docs", "scripts", ".ci"))]
    for folder in [*folders, ROOT / "changelog.d"]:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts:
                yield path
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name != ".git":
            yield path


def matches(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_patterns_find_what_they_look_for() -> None:
    assert UNFINISHED.search("# TO" + "DO: later")
    assert not UNFINISHED.search("the XX" + "XL shirt")
    assert MACHINE_PATH.search("open('/wo" + "rk/main')")
    assert not MACHINE_PATH.search("see docs/wo" + "rk/notes and ~/ho" + "me/x")
    assert REGISTRY.search("pip install --index" + "-url x")


def test_work_is_finished() -> None:
    assert matches(UNFINISHED) == []


def test_no_machine_paths() -> None:
    assert matches(MACHINE_PATH) == []


def test_no_registry_is_named() -> None:
    """Where packages come from is the user's configuration, not ours."""
    assert matches(REGISTRY) == []


def test_modules_are_short() -> None:
    files = [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > MODULE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = []
    for path in [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}")
    assert long == []


def test_modules_say_what_they_are() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def module_name(path: Path) -> str:
    [package] = [p for p in PACKAGES if path.is_relative_to(p)]
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_in(path: Path) -> Iterator[str]:
    """Names of modules (or of things in them) that a module imports or spells out in a string."""
    is_test = (ROOT / "tests") in path.parents
    owner = path if path.name == "__init__.py" else path.parent
    package = "" if is_test else module_name(owner)
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
                yield str(node.module)
            case ast.Constant(value=str() as text) if text.endswith(".py"):
                yield f"{package}.{text.removesuffix('.py')}"  # a file that is run by its path
            case ast.Constant(value=str() as text):
                yield text.partition(":")[0]
            case _:
                pass


def entry_points() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["scripts"], *project["entry-points"].values()):
        yield from (value.partition(":")[0] for value in group.values())


def test_no_dead_modules() -> None:
    """Every module is reached from an entry point, a stable import path, or the tests' workshop.

    The workshop is `agentsched_bench`: tests may be what a module there is for, nowhere else.
    """
    paths = {module_name(path): path for path in modules()}
    reached: set[str] = set()
    started = {name for name in paths if name.endswith(".__main__")}  # by `python -m`
    waiting = {"agentsched", "agentsched.model", "agentsched.policy", *entry_points(), *started}
    tested = (name for path in (ROOT / "tests").rglob("*.py") for name in named_in(path))
    waiting |= {name for name in tested if name.startswith("agentsched_bench.")}
    while waiting:
        name = waiting.pop()
        if name in reached or name not in paths:
            continue
        reached.add(name)
        waiting.update(named_in(paths[name]))
        waiting.add(name.rpartition(".")[0])  # a module's package comes with it
    alive = reached | {n for n in paths if paths[n].name == "__init__.py"}
    assert sorted(set(paths) - alive) == []


def test_entry_points_exist() -> None:
    paths = {module_name(path) for path in modules()}
    assert sorted(set(entry_points()) - paths) == []


@pytest.mark.slow
def test_drawn_docs_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "draw.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "changelog.d").glob("*.md")), ids=lambda p: p.name)
def test_change_notes_have_a_kind(path: Path) -> None:
    if path.name != "README.md":
        assert re.fullmatch(
            r"(\d+|\+[\w-]+)\.(added|changed|fixed|removed|security)(\.\d+)?\.md", path.name
        )


@pytest.mark.parametrize("name", ["install", "check", "test", "demo"])
def test_scripts_can_be_run(name: str) -> None:
    script = ROOT / "scripts" / name
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
