"""Changes for mutation tests: found in order, made one at a time, nothing else touched."""

from __future__ import annotations

import ast

import pytest

from agentsched_bench.chaos.mutant import changed, sites

SOURCE = """
def f(a: int, b: int = 1) -> bool:
    assert a < 99
    return not a <= b and min(a, 2) + b > 0
"""


def test_all_places_are_found_and_assertions_are_none() -> None:
    words = [place.partition(": ")[2] for place in sites(SOURCE)]
    assert sorted(words) == [
        "0 is one more",
        "1 is one more",
        "2 is one more",
        "Add becomes Sub",
        "And becomes Or",
        "Gt becomes GtE",
        "LtE becomes Lt",
        "min becomes max",
        "not is left out",
    ]


@pytest.mark.parametrize("number", range(9))
def test_each_change_changes_one_thing(number: int) -> None:
    before = ast.unparse(ast.parse(SOURCE)).split()
    after = ast.unparse(changed(SOURCE, number)).split()
    assert before != after
    assert abs(len(before) - len(after)) <= 1
    compile(changed(SOURCE, number), "m", "exec")
