"""Deadlines: multiples of the time alone, told by those who can, kept or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentsched.model import ConfigError, Instant, StepArrived, between, in_seconds
from agentsched_bench.compare import results
from agentsched_bench.compare.cli import compare, resumed
from agentsched_bench.compare.deadlines import deadlines_of, in_time, telling
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.load import make_load
from agentsched_bench.compare.results import CompareResult, Program
from agentsched_bench.compare.run import paced
from agentsched_bench.compare.scenario import MeasureSpec, load_scenario
from agentsched_bench.compare.simulated import journal_of

Make = Callable[..., CompareResult]


def program(name: str, jct_s: float | None) -> Program:
    outcome = "failed" if jct_s is None else "completed"
    return Program(program=name, started_s=0.0, jct_s=jct_s, outcome=outcome)


def test_a_programs_multiple_goes_by_its_name() -> None:
    alone_s = {f"p{number}": 10.0 for number in range(100)}
    found = deadlines_of(alone_s, (2.0, 8.0))
    tight = [name for name, span_s in found.items() if span_s == 20.0]
    assert set(found.values()) == {20.0, 80.0}
    assert 30 < len(tight) < 70
    # Whoever else is there changes nothing.
    assert deadlines_of(dict.fromkeys(tight, 10.0), (2.0, 8.0)) == dict.fromkeys(tight, 20.0)
    assert deadlines_of(alone_s, ()) == {}


def test_multiples_of_what_is_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"they need measure\.alone = 'model'"):
        deadlines_of({}, (2.0,))


def test_who_gave_up_or_has_no_deadline() -> None:
    wanted = {"early": 5.0, "late": 5.0, "gone": 5.0, "just": 5.0}
    found = [program("early", 1.0), program("late", 5.1), program("gone", None)]
    assert in_time([*found, program("just", 5.0), program("other", 1.0)], wanted) == 0.5
    assert in_time([program("other", 1.0)], wanted) is None


def test_the_share_in_time_is_a_figure_of_each_arm(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 4.0, "b": 9.0}], "ours": [{"a": 4.0, "b": 6.0}]})
    assert [row.in_time_share for row in summarise(made)] == [None, None]
    made.deadlines_s = {"a": 5.0, "b": 7.0}
    assert [row.in_time_share for row in summarise(made)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("arm", "is_told"), [("agentsched@agentsched", True), ("agentsched@session", False)]
)
def test_a_simulated_program_tells_its_deadline_as_a_live_one(
    arm: str, is_told: bool, small: Path
) -> None:
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    spans = {plan.program: 30.0 + number for number, plan in enumerate(load.plans)}
    (told,) = telling([load], spans)

    events = [entry.event for entry in journal_of(arm, told, scenario)]
    arrivals = [event for event in events if isinstance(event, StepArrived)]

    assert len(arrivals) == load.calls
    if not is_told:
        assert {event.deadline for event in arrivals} == {None}
        return
    # Every call of a program says the same: so long after its start.
    found = sorted(
        {round(in_seconds(between(Instant(0), e.deadline)), 6) for e in arrivals if e.deadline}
    )
    starts = zip(load.plans, load.starts_s, strict=True)
    assert found == pytest.approx(
        sorted((at or 0.0) + spans[plan.program] for plan, at in starts), abs=1e-5
    )


def test_a_faster_engine_has_less_time(small: Path) -> None:
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    (told,) = telling([load], {"a": 30.0})
    assert paced(told, speed=20.0).deadlines_s == {"a": 1.5}


def test_a_comparison_with_deadlines_keeps_and_shows_them(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    changes = ["measure.deadlines=[1.5, 3.0]", "measure.repeat=1"]
    compare(small, arm=["direct", "agentsched@agentsched"], change=changes, simulate=True, out=out)
    found = results.read(out)
    assert set(found.deadlines_s) == {row.program for run in found.runs for row in run.programs}
    multiples = {round(found.deadlines_s[name] / alone, 6) for name, alone in found.alone_s.items()}
    assert multiples <= {1.5, 3.0}
    assert [row.in_time_share for row in found.summary] == [1.0, 1.0]


def test_a_file_from_before_there_were_deadlines_is_gone_on_with(
    comparison: Make, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    usual = MeasureSpec().model_dump(mode="json")
    made = comparison({"direct": [{"a": 1.0}]})
    older = {key: value for key, value in usual.items() if "deadlines" not in key}
    made.spec = {"arms": ["direct"], "measure": older, "baseline": None}
    results.write(made, path)

    def again(**more: object) -> int:
        new = comparison({"direct": []})
        new.spec = {"arms": ["direct"], "measure": usual | more, "baseline": None}
        return len(resumed(new, path, redo_stalled=False).runs)

    assert again() == 1
    with pytest.raises(ConfigError, match="holds another comparison"):
        again(deadlines=[2.0])
