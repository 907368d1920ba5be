"""Synthetic recordings: the same seed gives the same, and they are sound."""

from __future__ import annotations

from pathlib import Path

from agentsched_bench.workload.generate import generate, sample_path
from agentsched_bench.workload.trace import group_programs, read_trace, write_trace
from agentsched_bench.workload.validate import check_recording


def test_a_seed_decides_everything() -> None:
    assert list(generate(programs=8, seed=1)) == list(generate(programs=8, seed=1))
    assert list(generate(programs=8, seed=1)) != list(generate(programs=8, seed=2))


def test_what_is_made_is_sound_and_says_what_it_is() -> None:
    rows = list(generate(programs=40, seed=3))

    assert [finding for row in rows for finding in check_recording(row)] == []
    assert all(row.synthetic and row.source == "synthetic" for row in rows)
    assert len(group_programs(rows)) == 40


def test_some_programs_have_sub_agents_that_their_parents_wait_for() -> None:
    programs = group_programs(generate(programs=60, seed=7))
    with_children = [program for program in programs if program.children]

    assert with_children
    for program in with_children:
        (child,) = program.children
        assert child.parent_t_s is not None
        (task,) = [s for s in program.main.steps if s.tools and s.tools[0].name == "Task"]
        assert task.gap_s is not None
        last = child.steps[-1]
        assert task.gap_s >= (last.t_s or 0.0)


def test_the_sample_is_what_its_command_makes(tmp_path: Path) -> None:
    write_trace(generate(programs=60, seed=7), tmp_path / "again.jsonl")

    assert list(read_trace(tmp_path / "again.jsonl")) == list(read_trace(sample_path()))
