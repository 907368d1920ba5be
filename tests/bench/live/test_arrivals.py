"""Arrival processes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from agentsched.model import ConfigError
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.workload.shape import PlannedConversation, PlannedProgram


def _program(name: str, arrival_s: float | None = None) -> PlannedProgram:
    main = PlannedConversation(conversation=name, calls=())
    return PlannedProgram(program=name, main=main, arrival_s=arrival_s)


_PROGRAMS = [_program(str(i)) for i in range(2_000)]


def test_a_burst_is_evenly_spaced() -> None:
    arrivals = parse_arrivals("burst:4/s")

    assert arrivals.starts_s(_PROGRAMS[:3], rng=random.Random(0)) == [0.0, 0.25, 0.5]
    assert arrivals.concurrency is None
    assert str(arrivals) == "burst:4/s"


def test_poisson_arrivals_have_their_rate_and_follow_the_seed() -> None:
    arrivals = parse_arrivals("poisson:0.5")

    starts = arrivals.starts_s(_PROGRAMS, rng=random.Random(1))

    assert starts == arrivals.starts_s(_PROGRAMS, rng=random.Random(1))
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(4_000, rel=0.1)


def test_a_closed_loop_starts_all_and_limits_how_many_run() -> None:
    arrivals = parse_arrivals("closed:8")

    assert arrivals.concurrency == 8
    assert arrivals.starts_s(_PROGRAMS[:2], rng=random.Random(0)) == [0.0, 0.0]


def test_recorded_arrivals_begin_at_once() -> None:
    programs = [_program("a", 40.0), _program("b", 45.5)]

    starts = parse_arrivals("recorded").starts_s(programs, rng=random.Random(0))

    assert starts == [0.0, 5.5]


def test_recorded_arrivals_must_be_recorded() -> None:
    with pytest.raises(ConfigError, match="no recorded start"):
        parse_arrivals("recorded").starts_s(_PROGRAMS[:1], rng=random.Random(0))


@pytest.mark.parametrize(
    "wrong", ["", "uniform:3", "burst", "burst:-1", "closed:2.5", "poisson:nan", "recorded:3"]
)
def test_nonsense_is_refused_with_a_hint(wrong: str) -> None:
    with pytest.raises(ConfigError, match="write recorded"):
        parse_arrivals(wrong)


def test_loops_begin_at_once_whatever_the_others_do() -> None:
    loop = replace(_program("loop"), pool="main")
    programs = [_program("a", 4.0), loop, _program("b", 9.5)]

    def starts(text: str) -> list[float]:
        return parse_arrivals(text).starts_s(programs, rng=random.Random(0))

    assert starts("recorded") == [4.0, 0.0, 9.5], "seconds of the replay"
    assert starts("burst:2/s") == [0.0, 0.0, 0.5]
