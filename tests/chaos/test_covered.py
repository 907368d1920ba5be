"""Shares of branches by room, from a report that is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsched_bench.chaos.__main__ import main
from agentsched_bench.chaos.covered import covered, to_lines


def one(branches: int, taken: int, *, missing: Any = ()) -> dict[str, Any]:
    summary = {
        "num_branches": branches,
        "covered_branches": taken,
        "num_statements": 10,
        "covered_lines": 9,
    }
    return {"summary": summary, "missing_branches": list(missing)}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    files = {
        "a/kernel/x.py": one(10, 10),
        "a/kernel/y.py": one(30, 20, missing=[[4, 7], [9, -1]]),
        "a/model/z.py": one(0, 0),
        "a/kernels/no.py": one(100, 0),
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"files": files}))
    return path


def test_rooms_are_folders_and_shares_are_of_their_sums(report: Path) -> None:
    found = covered(report, rooms=("a/kernel", "a/model"))
    assert found["rooms"]["a/kernel"]["branches_taken"] == 0.75
    assert found["rooms"]["a/model"]["branches_taken"] == 1.0
    assert found["whole"] == {
        "branches": 40,
        "branches_taken": 0.75,
        "statements": 30,
        "statements_run": 0.9,
    }
    assert list(found["thin"]) == ["a/kernel/y.py"]


def test_a_room_that_was_not_run_is_no_room_without_gaps(report: Path) -> None:
    with pytest.raises(ValueError, match="a/policy"):
        covered(report, rooms=("a/kernel", "a/policy"))


def test_what_is_thin_is_shown_with_its_ways(report: Path) -> None:
    lines = to_lines(covered(report, rooms=("a/kernel",)), least=0.8)
    assert "    66.7%  a/kernel/y.py: 4->7, 9->exit" in lines
    assert lines[-1] == "coverage: NOT ENOUGH, the least is 80%"


@pytest.mark.parametrize(("least", "code"), [("0.75", 0), ("0.76", 1)])
def test_too_little_is_an_exit_code(report: Path, least: str, code: int) -> None:
    assert main(["covered", str(report), "a/kernel", "--least", least]) == code
