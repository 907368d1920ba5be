"""The benchmark itself, small: real processes, every answer checked, nothing left running."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.overhead import arms as sides
from agentsched_bench.overhead.arms import Arm, all_arms
from agentsched_bench.overhead.cli import overhead
from agentsched_bench.overhead.measure import Bench, Plan
from agentsched_bench.overhead.results import Cell
from agentsched_bench.ports import free_port

_CELLS = [
    Cell(shape="8KB", is_stream=False, concurrency=2),
    Cell(shape="130KB", is_stream=True, concurrency=2),
]


def _plan(folder: Path, *names: str) -> Plan:
    return Plan(
        arms=[arm for arm in all_arms(folder) if arm.name in names],
        cells=_CELLS,
        repeats=1,
        requests=8,
        memory_programs=2,
        memory_arms=frozenset({sides.INFERRED}),
        folder=folder,
        is_pinned=True,
    )


@pytest.mark.slow
async def test_every_arm_is_measured_in_every_cell_and_programs_are_recognised(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    bench = Bench(_plan(tmp_path, sides.DIRECT, sides.INFERRED, sides.WITH_IDS), show=told.append)
    samples = [sample async for sample in bench.samples()]
    assert [(s.cell, s.arm) for s in samples] == [
        (cell, arm) for cell in _CELLS for arm in (sides.DIRECT, sides.INFERRED, sides.WITH_IDS)
    ]
    for sample in samples:
        assert sample.requests > 0
        assert 0 < sample.first_p50_us <= sample.total_p50_us
        assert (sample.cpu_us is None) is (sample.arm == sides.DIRECT)
        if sample.arm != sides.DIRECT:
            assert sample.cpu_us is not None
            assert sample.cpu_us > 0
            assert sample.recognised == sample.continuations == sample.requests
    assert len(told) == len(samples)


@pytest.mark.slow
async def test_memory_is_read_after_whole_programs(tmp_path: Path) -> None:
    bench = Bench(_plan(tmp_path, sides.INFERRED), show=lambda what: None)
    (sample,) = [sample async for sample in bench.memory()]
    assert sample.requests == 2 * sample.messages // 2
    assert sample.recognised_share == 1.0
    assert sample.after_bytes > 0


@pytest.mark.slow
async def test_an_arm_that_answers_wrongly_ends_the_run(tmp_path: Path) -> None:
    plan = _plan(tmp_path, sides.INFERRED)
    broken = [dataclasses.replace(arm, command=_without_engine(arm)) for arm in plan.arms]
    bench = Bench(
        dataclasses.replace(plan, arms=[dataclasses.replace(a, health="/healthz") for a in broken]),
        show=lambda what: None,
    )
    with pytest.raises(ConfigError, match="requests failed"):
        [sample async for sample in bench.samples()]


def _without_engine(arm: Arm) -> Callable[[sides.Site], list[str]]:
    def command(site: sides.Site) -> list[str]:
        assert arm.command is not None
        return list(arm.command(dataclasses.replace(site, upstream=free_port())))

    return command


def test_a_peer_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    by_name = {arm.name: arm for arm in all_arms(tmp_path)}
    assert "pip install vllm-router" in by_name[sides.PROGRAMS].missing
    assert by_name[sides.INFERRED].missing == ""


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such size: '1MB'"):
        overhead(shape=["1MB"])
    with pytest.raises(ConfigError, match="no such arm: 'envoy'"):
        overhead(arm=["envoy"])
