"""SECURITY.md is true: every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMED = sorted(set(re.findall(r"`(tests/[\w/.:]+)`", (ROOT / "SECURITY.md").read_text())))


def test_there_are_many() -> None:
    assert len(NAMED) > 25


@pytest.mark.parametrize("name", NAMED)
def test_what_it_names_exists(name: str) -> None:
    file, _, inside = name.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    tops = {getattr(node, "name", ""): node for node in tree.body}
    if inside:
        assert inside in tops
    found = tops[inside] if inside else tree
    tests = [n for n in ast.walk(found) if str(getattr(n, "name", "")).startswith("test_")]
    assert tests, f"{name} has no tests"


def test_every_line_of_the_table_names_one() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    table = text.partition("| threat |")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    assert len(lines) > 20
    for line in lines:
        assert "`tests/" in line, line


def test_all_files_of_this_room_are_named() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for file in Path(__file__).parent.glob("test_*.py"):
        assert file.name == "test_threats.py" or file.name in text, file.name
