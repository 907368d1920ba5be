"""One run: everything started, every arm measured in turn in every cell, again and again."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError, EngineError
from agentsched_bench.overhead.arms import Arm, Site
from agentsched_bench.overhead.bodies import SHAPES
from agentsched_bench.overhead.load import READY, Job, Outcome
from agentsched_bench.overhead.processes import Measured, started, until_healthy
from agentsched_bench.overhead.results import Cell, MemorySample, Sample, percentile
from agentsched_bench.ports import free_port

#: Events per second of all streams together; beyond it the upstream and the client would count.
_EVENTS_PER_S: Final = 8_000
_GAP_S_MIN: Final = 0.001
_READY_S: Final = 60.0
_MEMORY_CONCURRENCY: Final = 16
_MEMORY_WARM_PROGRAMS: Final = 64
#: A stream waits most of the time: fewer of them say as much.
_STREAM_SHARE_AT_ONE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run measures. `requests` is per arm, cell and repeat, about."""

    arms: Sequence[Arm]
    cells: Sequence[Cell]
    repeats: int
    requests: int
    memory_programs: int
    memory_arms: frozenset[str]
    folder: Path
    is_pinned: bool

    def programs(self, cell: Cell) -> int:
        """Programs of one block."""
        requests = self.requests
        if cell.is_stream and cell.concurrency == 1:
            requests //= _STREAM_SHARE_AT_ONE
        return max(cell.concurrency, requests // SHAPES[cell.shape].turns, 1)

    @property
    def blocks(self) -> int:
        """Blocks of the whole run, for a progress bar."""
        memory = sum(arm.name in self.memory_arms for arm in self.arms)
        return len(self.arms) * len(self.cells) * self.repeats + memory * bool(self.memory_programs)


class Bench:
    """A run under way. `show` is told before each block what it is."""

    def __init__(self, plan: Plan, *, show: Callable[[str], None]) -> None:
        self._plan = plan
        self._show = show
        cpus = sorted(os.sched_getaffinity(0))
        is_pinned = plan.is_pinned and len(cpus) > 1
        self._proxy_cpus = frozenset(cpus[-1:] if is_pinned else cpus)
        self._other_cpus = frozenset(cpus[:-1] if is_pinned else cpus)
        self._numbers = itertools.count(1)

    async def samples(self) -> AsyncIterator[Sample]:
        """Measure all cells. Arms alternate; each repeat begins with another one."""
        plan = self._plan
        async with contextlib.AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(self._upstream())
            load = await stack.enter_async_context(self._load())
            running = {
                arm.name: await stack.enter_async_context(self._arm(arm, upstream))
                for arm in plan.arms
            }
            for repeat, cell in itertools.product(range(plan.repeats), plan.cells):
                _pace(upstream, cell)
                first = self._take(plan.programs(cell))
                turn = repeat % len(plan.arms)
                for arm in [*plan.arms[turn:], *plan.arms[:turn]]:
                    self._show(f"{cell}: {arm.name}")
                    yield await self._sample(repeat, cell, arm, running[arm.name], load, first)

    async def memory(self) -> AsyncIterator[MemorySample]:
        """Measure what live programs take, each arm in a fresh process."""
        plan = self._plan
        if not plan.memory_programs:
            return
        for arm in plan.arms:
            if arm.name not in plan.memory_arms:
                continue
            self._show(f"memory: {arm.name}")
            async with (
                self._upstream() as upstream,
                self._load() as load,
                self._arm(arm, upstream) as proxy,
            ):
                await self._histories(arm, proxy, load, _MEMORY_WARM_PROGRAMS)
                before = proxy.rss_bytes()
                outcome = await self._histories(arm, proxy, load, plan.memory_programs)
                asked = outcome.continuations
                yield MemorySample(
                    arm=arm.name,
                    programs=plan.memory_programs,
                    messages=SHAPES["130KB"].messages,
                    requests=outcome.requests,
                    before_bytes=before,
                    after_bytes=proxy.rss_bytes(),
                    recognised_share=outcome.recognised / asked if asked else None,
                )

    async def _histories(self, arm: Arm, proxy: Measured, load: Measured, programs: int) -> Outcome:
        job = Job(
            port=proxy.port,
            shape="130KB",
            is_stream=False,
            concurrency=_MEMORY_CONCURRENCY,
            programs=programs,
            first_program=self._take(programs),
            with_ids=arm.with_ids,
            is_history=True,
        )
        outcome, _ = await _run(load, job, proxy)
        return _checked(outcome, arm)

    async def _sample(
        self, repeat: int, cell: Cell, arm: Arm, proxy: Measured, load: Measured, first: int
    ) -> Sample:
        job = Job(
            port=proxy.port,
            shape=cell.shape,
            is_stream=cell.is_stream,
            concurrency=cell.concurrency,
            programs=self._plan.programs(cell),
            first_program=first,
            with_ids=arm.with_ids,
        )
        outcome, cpu_s = await _run(load, job, proxy)
        _checked(outcome, arm)
        return Sample(
            repeat=repeat,
            cell=cell,
            arm=arm.name,
            requests=outcome.requests,
            body_bytes=outcome.body_bytes,
            cpu_us=1e6 * cpu_s / outcome.requests if arm.command is not None else None,
            total_p50_us=percentile(outcome.total_us, 0.5),
            total_p99_us=percentile(outcome.total_us, 0.99),
            first_p50_us=percentile(outcome.first_us, 0.5),
            first_p99_us=percentile(outcome.first_us, 0.99),
            wall_s=outcome.wall_s,
            continuations=outcome.continuations,
            recognised=outcome.recognised,
        )

    def _take(self, programs: int) -> int:
        """Numbers for programs that nobody has seen yet; returns the first."""
        first = next(self._numbers)
        self._numbers = itertools.count(first + programs)
        return first

    @contextlib.asynccontextmanager
    async def _upstream(self) -> AsyncIterator[Measured]:
        command = [sys.executable, "-m", "agentsched_bench.overhead.upstream"]
        async with started(command, name="the upstream", cpus=self._other_cpus) as running:
            line = await _line(running)
            port = line.rpartition(":")[2]
            if not port.isdigit():
                raise EngineError(f"the upstream did not start; it said: {line or 'nothing'}")
            yield Measured(name=running.name, process=running.process, port=int(port))

    @contextlib.asynccontextmanager
    async def _load(self) -> AsyncIterator[Measured]:
        command = [sys.executable, "-m", "agentsched_bench.overhead.load"]
        async with started(command, name="the client", cpus=self._other_cpus) as running:
            yield running

    @contextlib.asynccontextmanager
    async def _arm(self, arm: Arm, upstream: Measured) -> AsyncIterator[Measured]:
        if arm.command is None:
            yield upstream
            return
        port = free_port()
        folder = self._plan.folder / f"{arm.name}-{port}"
        folder.mkdir()
        log = folder / "output.log"
        command = arm.command(Site(upstream=upstream.port, port=port, folder=folder))
        cpus = self._proxy_cpus
        async with started(command, name=arm.name, cpus=cpus, port=port, log=log) as running:
            await until_healthy(running, arm.health, log=log, within_s=_READY_S)
            yield running


async def _run(load: Measured, job: Job, proxy: Measured) -> tuple[Outcome, float]:
    """One block; the CPU that the proxy used in its measured part, in seconds."""
    pipe = load.process.stdin
    assert pipe is not None
    pipe.write(msgspec.json.encode(job) + b"\n")
    if await _line(load) != READY:
        raise EngineError(f"the client ended before it measured {proxy.name}")
    before = proxy.cpu_s()
    pipe.write(b"\n")
    line = await _line(load)
    used = proxy.cpu_s() - before
    return msgspec.json.decode(line, type=Outcome), used


def _checked(outcome: Outcome, arm: Arm) -> Outcome:
    if outcome.failures or not outcome.requests:
        said = outcome.failure or "no request was answered"
        raise ConfigError(f"{arm.name}: {outcome.failures} requests failed; the first: {said}")
    return outcome


async def _line(running: Measured) -> str:
    assert running.process.stdout is not None
    return (await running.process.stdout.readline()).decode().strip()


def _pace(upstream: Measured, cell: Cell) -> None:
    gap_s = max(_GAP_S_MIN, cell.concurrency / _EVENTS_PER_S)
    url = f"http://127.0.0.1:{upstream.port}/gap/{gap_s}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10):
        pass
