"""The examination of the forecast of remaining work: what it is told, what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from agentsched_bench.forecast.cases import is_held_out, read_cases
from agentsched_bench.forecast.remaining import (
    USED,
    Life,
    RemainingReport,
    evaluate_remaining,
    read_lives,
)
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.trace import (
    RecordedStep,
    RecordedTool,
    Recording,
    group_programs,
    write_trace,
)


def lives(lengths: dict[str, int], *, count: int = 60) -> list[Life]:
    """Programs of several agent types, each type with its own length."""
    return [
        Life(program=f"{agent}-{number}", agent=agent, steps=steps)
        for agent, steps in lengths.items()
        for number in range(count)
    ]


def examined(lengths: dict[str, int]) -> RemainingReport:
    report = evaluate_remaining(lives(lengths))
    assert report is not None
    return report


def test_agents_that_always_take_as_long_are_foreseen_by_their_type() -> None:
    report = examined({"short": 4, "long": 40})
    used, constant = report.forecasts[USED], report.forecasts["constant"]
    assert used.log_error < 0.25 * constant.log_error
    assert used.in_order > 0.95
    assert constant.in_order == 0.5


def test_without_a_difference_between_programs_what_is_done_tells_all() -> None:
    report = examined({"agent": 20})
    assert report.forecasts[USED].in_order == 1.0
    assert report.forecasts["mean length less done"].log_error == 0.0
    assert (report.steps_p10, report.steps_p50, report.steps_p90) == (20, 20, 20)


def test_each_step_of_a_held_out_program_is_asked_about_and_no_other() -> None:
    given = lives({"agent": 7})
    report = examined({"agent": 7})
    held_out = [life for life in given if is_held_out(life.program)]
    assert report.programs_held_out == len(held_out)
    assert report.programs_learnt == len(given) - len(held_out)
    assert report.states_held_out == 7 * len(held_out)


def test_the_same_programs_get_the_same_marks() -> None:
    assert examined({"a": 3, "b": 9}) == examined({"a": 3, "b": 9})


@pytest.mark.parametrize("is_held_out_wanted", [True, False])
def test_there_is_no_report_without_both_sides(is_held_out_wanted: bool) -> None:
    one_side = [x for x in lives({"a": 5}) if is_held_out(x.program) is is_held_out_wanted]
    assert evaluate_remaining(one_side) is None


def test_sub_agents_steps_are_their_programs(tmp_path: Path) -> None:
    rows = list(generate(programs=6, seed=3, interarrival_s=1.0, steps_max=5))
    rows = [*rows[:-1], replace(rows[-1], parent=rows[0].session_id)]
    path = tmp_path / "trace.jsonl.gz"
    write_trace(rows, path)
    found = {life.program: life.steps for life in read_lives(path)}
    expected = {p.main.session_id: p.calls for p in group_programs(rows)}
    assert found == expected


def test_a_recording_that_was_cut_off_has_no_known_length(tmp_path: Path) -> None:
    rows = list(generate(programs=3, seed=3, interarrival_s=1.0, steps_max=5))
    first = next(row for row in rows if row.parent is None)
    path = tmp_path / "trace.jsonl.gz"
    write_trace([replace(r, is_cut=True) if r is first else r for r in rows], path)
    assert first.session_id not in {life.program for life in read_lives(path)}


def test_a_program_with_all_its_sub_agents_is_on_one_side(tmp_path: Path) -> None:
    """Also those of sub-agents; and siblings whose parent is missing."""
    steps = (
        RecordedStep(step=0, input_tokens=9, output_tokens=1, tools=(RecordedTool(name="x"),)),
        RecordedStep(step=1, input_tokens=19, output_tokens=1),
    )
    rows = [
        Recording(session_id=f"{name}{number}", source="test", parent=above, steps=steps)
        for number in range(20)
        for name, above in (
            ("inner", f"child{number}"),
            ("main", None),
            ("child", f"main{number}"),
            ("stray", f"gone{number}"),
            ("other", f"gone{number}"),
        )
    ]
    write_trace(rows, tmp_path / "t.jsonl")
    cases = read_cases(tmp_path / "t.jsonl")
    assert [case.program for case in cases[:5]] == ["main0", "main0", "main0", "gone0", "gone0"]
    assert len({case.program for case in cases}) == 40
