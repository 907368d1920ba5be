"""Composed workloads: what is drawn, whose it is, when it comes, and that a seed decides it all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsched.model import ConfigError
from agentsched_bench.workload.compose import (
    MAIN_POOL,
    Composition,
    PlannedWorkload,
    compose,
    plan_workload,
)
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.loops import closed_loops
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.spec import parse_workload
from agentsched_bench.workload.trace import (
    RecordedStep,
    Recording,
    group_programs,
    header_of,
    read_trace,
    write_trace,
)
from agentsched_bench.workload.validate import validate_trace


def composed(folder: Path, **table: Any) -> Composition:
    table.setdefault("sources", [{"trace": "sample"}])
    return compose(parse_workload(table, where="test"), folder=folder)


def planned(folder: Path, **table: Any) -> PlannedWorkload:
    return plan_workload(composed(folder, **table))


POISSON = {"process": "poisson", "rate": 0.5}


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    table = {"programs": 30, "arrivals": POISSON, "tenants": [{"name": "a"}, {"name": "b"}]}
    first = composed(tmp_path, seed=1, **table)
    assert first == composed(tmp_path, seed=1, **table)
    assert first != composed(tmp_path, seed=2, **table)


def test_other_arrivals_leave_the_choice_of_programs_alone(tmp_path: Path) -> None:
    one = composed(tmp_path, programs=20, arrivals=POISSON)
    two = composed(tmp_path, programs=20, arrivals={"process": "regular", "rate": 2})
    assert [p.main.session_id for p in one.programs] == [p.main.session_id for p in two.programs]


def test_sources_are_mixed_by_weight_and_dealt_without_repeating(tmp_path: Path) -> None:
    sources = [
        {"trace": "sample", "only": ["agent=shell-agent"], "weight": 3},
        {"trace": "sample", "only": ["agent=coding-agent"], "weight": 1},
    ]
    found = composed(tmp_path, sources=sources, programs=400, arrivals=POISSON)
    agents = Counter(program.main.agent for program in found.programs)
    assert 0.68 < agents["shell-agent"] / 400 < 0.82
    names = [program.main.session_id for program in found.programs]
    assert len(set(names)) == 400
    # Thirty of each are in the sample: each was dealt once before any was dealt again.
    assert sum("#" not in name for name in names) == 60


def test_a_name_is_the_same_program_for_every_seed(tmp_path: Path) -> None:
    sources = [{"trace": "sample", "scale_tokens": scale} for scale in (8.0, 2.0)]
    background = [{"arrivals": POISSON, "programs": 5}]
    known: dict[str, list[int]] = {}
    for seed in range(3):
        work = planned(
            tmp_path,
            sources=sources,
            background=background,
            programs=130,
            arrivals=POISSON,
            seed=seed,
        )
        assert len({plan.program for plan in work.programs}) == 135
        for plan in work.programs:
            prompts = [call.prompt_tokens for call in plan.main.calls]
            assert known.setdefault(plan.program, prompts) == prompts


def test_exact_numbers_go_before_weights(tmp_path: Path) -> None:
    sources = [
        {"trace": "sample", "only": ["agent=shell-agent"], "programs": 5},
        {"trace": "sample", "only": ["agent=coding-agent"], "programs": 2},
    ]
    found = composed(tmp_path, sources=sources)
    agents = Counter(program.main.agent for program in found.programs)
    assert agents == {"shell-agent": 5, "coding-agent": 2}


def test_programs_bound_what_the_numbers_of_all_sources_come_to(tmp_path: Path) -> None:
    sources = [
        {"trace": "sample", "only": [f"agent={agent}"], "programs": 8}
        for agent in ("shell-agent", "coding-agent")
    ]
    few = composed(tmp_path, sources=sources, programs=6, arrivals=POISSON)
    assert len(few.programs) == 6
    more = composed(tmp_path, sources=sources, programs=99, arrivals=POISSON)
    assert len(more.programs) == 16


@pytest.mark.parametrize("tenants", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_are_kept_where_tenants_have_arrivals_of_their_own(
    tenants: int, seed: int, tmp_path: Path
) -> None:
    """All together, whatever the shares are; a tenant with less than half a program has none."""
    arrivals = [POISSON, {"process": "closed", "concurrency": 2}]
    people: list[dict[str, Any]] = [
        {"name": f"t{number}", "load": 1 + number % 3, "arrivals": arrivals[number % 2]}
        for number in range(tenants)
    ]
    people[-1].pop("arrivals")
    counts = {"shell-agent": 9, "coding-agent": 1}
    sources: list[dict[str, Any]] = [
        {"trace": "sample", "only": [f"agent={agent}"], "programs": count}
        for agent, count in counts.items()
    ]
    table = {"tenants": people, "arrivals": POISSON, "seed": seed}
    found = composed(tmp_path, sources=sources, **table)
    assert Counter(program.main.agent for program in found.programs) == counts
    assert len(composed(tmp_path, programs=10, **table).programs) == 10
    # A duration cuts what it cuts, and leaves the others their programs.
    sources = [source | {"programs": 40} for source in sources]
    open_ended = [person | {"arrivals": POISSON} for person in people]
    cut = composed(tmp_path, sources=sources, duration_s=20, **(table | {"tenants": open_ended}))
    assert max(Counter(program.main.agent for program in cut.programs).values()) <= 40


def test_tenants_get_their_loads_and_their_own_arrivals(tmp_path: Path) -> None:
    tenants = [
        {"name": "heavy", "load": 3, "weight": 2},
        {"name": "light", "load": 1},
        {"name": "own", "load": 4, "arrivals": {"process": "regular", "rate": 1}},
    ]
    work = planned(tmp_path, programs=80, arrivals=POISSON, tenants=tenants)
    assert Counter(work.tenants.values()) == {"heavy": 30, "light": 10, "own": 40}
    own = [s for p, s in zip(work.programs, work.starts_s, strict=True) if p.tenant == "own"]
    assert own == [float(second) for second in range(40)]
    assert work.weights == {"heavy": 2.0, "light": 1.0, "own": 1.0}


def test_who_lacks_the_recordings_is_told_where_they_come_from(tmp_path: Path) -> None:
    gone = tmp_path.parent / "gone.jsonl.gz"
    with pytest.raises(ConfigError) as raised:
        composed(tmp_path, programs=1, sources=[{"trace": "../gone.jsonl.gz"}])
    said = str(raised.value)
    assert said.startswith(f"{gone}: no such trace")
    assert "docs/benchmarks.md" in said
    assert 'trace = "sample"' in said


def test_a_duration_bounds_open_arrivals(tmp_path: Path) -> None:
    work = planned(tmp_path, duration_s=60, arrivals={"process": "regular", "rate": 0.5})
    assert work.starts_s == tuple(2.0 * number for number in range(30))


def test_closed_loops_have_no_starts_but_a_pool(tmp_path: Path) -> None:
    background = [
        {
            "traffic": "batch",
            "name": "night",
            "arrivals": {"process": "closed", "concurrency": 2},
            "programs": 7,
        }
    ]
    work = planned(tmp_path, programs=5, background=background)
    assert work.pools == {MAIN_POOL: 8, "background/night": 2}
    assert set(work.starts_s) == {None}
    assert Counter(plan.pool for plan in work.programs) == {MAIN_POOL: 5, "background/night": 7}


def test_background_says_not_whose_it_is_and_shares_its_system_prompt(tmp_path: Path) -> None:
    background = [
        {"arrivals": POISSON, "programs": 20, "shared_tokens": 800, "output_tokens": [80, 160]}
    ]
    work = planned(tmp_path, programs=3, arrivals=POISSON, background=background)
    chats = [plan for plan in work.programs if plan.traffic == "chat"]
    assert len(chats) == 20
    assert work.without_ids == {plan.program for plan in chats}
    heads = {plan.main.calls[0].pieces[0] for plan in chats}
    assert len(heads) == 1
    assert heads.pop().tokens == 100  # 800 / 8


def test_recorded_starts_keep_their_order_and_scale(tmp_path: Path) -> None:
    work = planned(
        tmp_path, arrivals={"process": "recorded", "speed": 2}, scale_time=5, programs=10
    )
    sample = group_programs(generate(programs=60, seed=7))[:10]
    expected = [(program.main.start_s or 0.0) / 10 for program in sample]
    assert work.starts_s == pytest.approx(tuple(expected), abs=1e-5)


def test_recorded_starts_are_asked_of_programs_that_have_them(tmp_path: Path) -> None:
    step = RecordedStep(step=0, input_tokens=10, output_tokens=1)
    write_trace([Recording(session_id="x", source="s", steps=(step,))], tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="no recorded start"):
        composed(tmp_path, sources=[{"trace": "t.jsonl"}], arrivals={"process": "recorded"})


def test_scales_are_noted_and_heeded_by_every_reader(tmp_path: Path) -> None:
    sources = [{"trace": "sample", "scale_tokens": 2.0, "gap_cap_s": 1.0}]
    found = composed(tmp_path, sources=sources, programs=12, arrivals=POISSON, scale_time=4)
    path = tmp_path / "w.jsonl.gz"
    write_trace(found.recordings(), path, header=found.header())
    assert validate_trace(path).errors == 0
    programs = group_programs(read_trace(path))
    plans = plan_programs(
        programs,
        ShapeOptions(scale_tokens=100, scale_time=100),
        shared=SharedPrompts.learn(read_trace(path)),
    )
    assert tuple(plans) == plan_workload(found).programs
    head = programs[0].main.steps[0]
    assert plans[0].main.calls[0].prompt_tokens == round(head.input_tokens / 2)
    assert max(call.pause_s for plan in plans for call in plan.main.calls) <= 1.0 / 4
    assert [plan.arrival_s for plan in plans] == list(plan_workload(found).starts_s)


def test_the_whole_specification_is_written_into_the_trace(tmp_path: Path) -> None:
    found = composed(tmp_path, programs=4, seed=9)
    path = tmp_path / "w.jsonl"
    write_trace(found.recordings(), path, header=found.header())
    [first, *_] = path.read_bytes().splitlines()
    header = header_of(first, path=path)
    assert header.workload is not None
    assert parse_workload(header.workload["spec"], where="header") == found.spec
    assert header.workload["traces"][0]["is_synthetic"] is True
    assert len(list(read_trace(path))) == sum(1 for _ in found.recordings())


def test_a_part_shares_what_the_whole_shares(tmp_path: Path) -> None:
    """One program alone cannot tell what its kind has in common; the composition remembers."""
    rows = list(generate(programs=40, seed=3))
    cold = [
        row if index else _cold(row) for index, row in enumerate(r for r in rows if not r.parent)
    ]
    write_trace(cold, tmp_path / "t.jsonl")
    found = composed(
        tmp_path,
        sources=[{"trace": "t.jsonl", "only": [f"session_id={cold[0].session_id}"]}],
        programs=1,
    )
    assert found.programs[0].main.steps[0].prefix_tokens == cold[2].steps[0].prefix_tokens


def _cold(row: Recording) -> Recording:
    import msgspec

    first = msgspec.structs.replace(row.steps[0], prefix_tokens=0)
    return msgspec.structs.replace(row, steps=(first, *row.steps[1:]))


def test_programs_of_two_sources_with_one_name_stay_apart(tmp_path: Path) -> None:
    write_trace(generate(programs=3, seed=1), tmp_path / "a.jsonl")
    sources = [{"trace": "a.jsonl", "programs": 3}, {"trace": "./a.jsonl", "programs": 3}]
    found = composed(tmp_path, sources=sources)
    names = [program.main.session_id for program in found.programs]
    assert len(set(names)) == 6
    assert all(c.parent == p.main.session_id for p in found.programs for c in p.children)


def test_what_programs_share_can_be_limited(tmp_path: Path) -> None:
    def shared(**limit: int) -> list[int]:
        """Tokens of each program's first prompt that stand for what was common."""
        table = {"programs": 6, "arrivals": POISSON, "scale_tokens": 1, **limit}
        firsts = [plan.main.calls[0] for plan in planned(tmp_path, **table).programs]
        return [
            sum(piece.tokens for piece in first.pieces if piece.stream.startswith("shared/"))
            for first in firsts
        ]

    assert min(shared()) > 300
    assert set(shared(shared_tokens_max=300)) == {300}


def test_a_trace_knows_its_closed_loops(tmp_path: Path) -> None:
    """Where its beginning is lost, so are they."""
    composition = composed(tmp_path, programs=4)
    plans = plan_workload(composition).programs
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    write_trace(composition.recordings(), whole, header=composition.header())
    write_trace(composition.recordings(), part)

    assert closed_loops(plans, whole) == (list(plans), {MAIN_POOL: 8})
    assert closed_loops(plans, part) == ([replace(p, pool=None) for p in plans], {})
