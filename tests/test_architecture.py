"""The rooms keep to their walls, and the walls hold: each contract is broken once, on a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = (".", "graphs", "policies", "adapters", "bench")
PACKAGES = (
    "agentsched",
    "graphs/agentsched_graphs",
    "policies/agentsched_policies",
    "adapters/agentsched_adapters",
    "bench/agentsched_bench",
)
DOWNHILL = "Rooms point downhill"
PURE = "The pure rooms do no I/O and read no clock"
APART = "Policies do not know each other"
BY_ENTRY_POINT = "Only entry points know the built-in policies"
STANDARD = "The words and the plug points stand on the standard library alone"


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a tree whose packages take the place of the installed ones."""
    path = os.pathsep.join(str(tree / root) for root in SOURCE_ROOTS)
    script = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [script, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def broken(output: str) -> set[str]:
    return set(re.findall(r"^(.+) BROKEN", output, flags=re.MULTILINE))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code and its configuration."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.jsonl", "*.json", "*.gz"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "smuggled", "wanted"),
    [
        pytest.param(
            "policies/agentsched_policies/order/fcfs.py",
            "import time\nSTARTED = time.monotonic()",
            {PURE},
            id="a policy reads the clock",
        ),
        pytest.param(
            "graphs/agentsched_graphs/__init__.py",
            "from agentsched.proxy import request",
            {DOWNHILL},
            id="graphs know the proxy",
        ),
        pytest.param(
            "graphs/agentsched_graphs/__init__.py",
            "from agentsched.clock import MonotonicClock",
            {DOWNHILL, PURE},
            id="graphs reach the clock in a roundabout way",
        ),
        pytest.param(
            "agentsched/kernel/scheduler.py",
            "def late():\n    import asyncio\n    return asyncio",
            {PURE},
            id="the kernel imports asyncio inside a function",
        ),
        pytest.param(
            "agentsched/model/ids.py",
            "import msgspec",
            {STANDARD},
            id="the words need a package",
        ),
        pytest.param(
            "policies/agentsched_policies/order/fcfs.py",
            "from agentsched_policies.order.program_fcfs import ProgramFcfs",
            {APART},
            id="a policy knows its neighbour",
        ),
        pytest.param(
            "adapters/agentsched_adapters/__init__.py",
            "from agentsched_policies.order.fcfs import Fcfs",
            {BY_ENTRY_POINT},
            id="an adapter knows a policy",
        ),
        pytest.param(
            "agentsched/proxy/__init__.py",
            "import agentsched_bench",
            {DOWNHILL},
            id="the proxy knows the bench",
        ),
    ],
)
def test_contracts_bite(tree: Path, file: str, smuggled: str, wanted: set[str]) -> None:
    path = tree / file
    path.write_text(f"{path.read_text()}\n{smuggled}\n")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert wanted <= broken(done.stdout), done.stdout


def test_every_room_has_a_layer() -> None:
    """A new module of `agentsched` that no layer names would escape the contracts."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [c["layers"] for c in config["contracts"] if c["type"] == "layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    rooms = {
        f"agentsched.{path.stem}"
        for path in (ROOT / "agentsched").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and path.stem[0] != "_"
    }
    assert rooms - named == set()
    assert {name for name in named if name.startswith("agentsched.")} - rooms == set()
    assert {package.rpartition("/")[2] for package in PACKAGES} - named == {"agentsched"}


def imported_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


HEAVY = {
    "aiohttp",
    "asyncio",
    "httpx",
    "msgspec",
    "networkx",
    "pydantic",
    "rich",
    "sqlalchemy",
    "typer",
    "uvloop",
}


@pytest.mark.parametrize(
    "statement",
    [
        "import agentsched; agentsched.__version__",
        "from agentsched import AgentschedError",
        "import agentsched.model",
    ],
)
def test_import_is_light(statement: str) -> None:
    imported = imported_by(statement)
    assert "agentsched" in imported
    assert imported & HEAVY == set()


def test_import_takes_next_to_nothing() -> None:
    """`import agentsched` alone: not even our own words, nor dataclasses or re."""
    before = imported_by("")
    assert imported_by("import agentsched") - before <= {"agentsched", "typing", "__future__"} | (
        imported_by("import typing, importlib")
    )


def test_core_needs_no_extra() -> None:
    """What an engine image installs (networkx, msgspec) is all that the deciding half imports."""
    rooms = "agentsched.policy, agentsched.kernel, agentsched_graphs, agentsched_policies"
    assert imported_by(f"import {rooms}") & (HEAVY - {"msgspec", "networkx"}) == set()
