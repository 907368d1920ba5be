"""Choosing programs."""

from __future__ import annotations

import random

import pytest

from agentsched.model import ConfigError
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.trace import group_programs

_PROGRAMS = group_programs(generate(programs=20, seed=1, steps_max=4))


def test_a_seed_takes_the_same_programs_in_the_files_order() -> None:
    one = sample_programs(_PROGRAMS, count=5, rng=random.Random(3))
    two = sample_programs(_PROGRAMS, count=5, rng=random.Random(3))

    assert one == two
    places = [_PROGRAMS.index(program) for program in one]
    assert len(places) == 5
    assert places == sorted(places)


def test_filters_apply_before_the_lot() -> None:
    chosen = sample_programs(
        _PROGRAMS, count=None, rng=random.Random(0), only=["agent=shell*", "source=synthetic"]
    )

    assert len(chosen) == 10
    assert {program.main.agent for program in chosen} == {"shell-agent"}


@pytest.mark.parametrize("wrong", ["agent", "colour=red", "agent=none such"])
def test_a_filter_that_cannot_be_used_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        sample_programs(_PROGRAMS, count=3, rng=random.Random(0), only=[wrong])
