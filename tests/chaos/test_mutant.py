"""Changes for mutation tests: found in order, made one at a time, nothing else touched."""

from __future__ import annotations

import ast

import pytest

from agentsched_bench.chaos.mutant import changed, sites
from agentsched_bench.chaos.mutants import interval, modules
from agentsched_bench.chaos.mutants import tests_of as of_module

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


def test_all_of_kernel_and_policies_is_drawn_from() -> None:
    found = modules()
    assert {"agentsched.kernel.pins", "agentsched_policies.order.saga"} <= set(found)
    assert not [name for name in found if name.endswith("__init__")]
    assert of_module("agentsched.kernel.pins") == ("tests/kernel/test_pins.py", "tests/kernel")
    order = ("tests/policies/test_order.py", "tests/policies")
    assert of_module("agentsched_policies.order.saga") == order
    index = ("tests/proxy/identity", "tests/proxy")
    assert of_module("agentsched.proxy.identity.index") == index
    for name in found:
        assert of_module(name)[-1] in ("tests/kernel", "tests/policies")


@pytest.mark.parametrize(
    ("hits", "total", "expected"),
    [(0, 0, None), (19, 28, (0.493, 0.821)), (10, 10, (0.722, 1.0)), (0, 10, (0.0, 0.278))],
)
def test_a_share_has_an_interval(
    hits: int, total: int, expected: tuple[float, float] | None
) -> None:
    assert interval(hits, total) == expected
