"""Choosing programs."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from agentsched.model import ConfigError
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.trace import RecordedProgram, group_programs

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


def test_programs_with_sub_agents_can_be_asked_for() -> None:
    main = _PROGRAMS[0].main
    child = replace(_PROGRAMS[1].main, parent=main.session_id)
    programs = [*_PROGRAMS[2:], RecordedProgram(main=main, children=(child,))]

    def chosen(pattern: str) -> list[RecordedProgram]:
        return sample_programs(
            programs, count=None, rng=random.Random(0), only=[f"sub_agents={pattern}"]
        )

    assert chosen("[1-9]*") == [program for program in programs if program.children]
    assert chosen("1")[-1] == programs[-1]
    assert chosen("0") == [program for program in programs if not program.children]


@pytest.mark.parametrize("wrong", ["agent", "colour=red", "agent=none such"])
def test_a_filter_that_cannot_be_used_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        sample_programs(_PROGRAMS, count=3, rng=random.Random(0), only=[wrong])
