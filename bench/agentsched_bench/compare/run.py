"""Carries a comparison out: arms by turns, engines kept while they serve, every run kept."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from agentsched.model import EngineError, PolicyError, in_seconds, parse_span
from agentsched_bench.compare import results
from agentsched_bench.compare.agents import AgentLoad, run_agents
from agentsched_bench.compare.arms import Kind, Side
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.fleet import faults_of
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.machine import Watching, is_stalled, why_stalled
from agentsched_bench.compare.measure import (
    Target,
    measure,
    prepare,
    read_journal,
    rescale,
    warm_up,
)
from agentsched_bench.compare.outages import failing
from agentsched_bench.compare.proc import watching_machine
from agentsched_bench.compare.results import ArmRow, CompareResult, Replaced, Run
from agentsched_bench.compare.scenario import EngineKind, Scenario
from agentsched_bench.compare.simulated import simulate_run
from agentsched_bench.compare.stages import (
    Endpoint,
    Engines,
    arm_running,
    empty_caches,
    engines_running,
)
from agentsched_bench.compare.watch import policy_failures
from agentsched_bench.live.replay import Progress
from agentsched_bench.workload.shape import PlannedConversation

_NAME_CHARS_MAX: Final = 80


class Show(Protocol):
    """What a comparison tells whoever shows it."""

    def begin(self, *, number: int, runs: int, side: str, repeat: int, doing: str) -> None:
        """A run is being prepared, or begins."""

    def progress(self, *, done: int, planned: int, note: str) -> None:
        """So many calls of the run are done."""

    def end(self, *, side: str, took_s: float) -> None:
        """A run ended."""


class Store:
    """The result and its file. A run is in the file as soon as it has ended."""

    def __init__(self, result: CompareResult, *, path: Path | None) -> None:
        self.result = result
        self._path = path

    def has(self, side: str, repeat: int) -> bool:
        """Whether this run came to its end, now or in an earlier invocation."""
        return any(
            run.arm == side and run.repeat == repeat and run.is_complete for run in self.result.runs
        )

    def has_all(self, repeats: int) -> bool:
        """Whether each arm that can be run has so many repeats, also those left out this time.

        One that did not start can be run, and so can one that ran and then did not any more: both
        are tried again. Only what was known not to run here before, such as a router that is not
        installed, is no gap.
        """
        return all(
            self.has(row.name, repeat)
            for row in self.result.arms
            if not row.missing or row.has_failed or results.finished_runs(self.result, row.name)
            for repeat in range(repeats)
        )

    def add(self, run: Run) -> None:
        """Take a run in; what an interrupted one of the same place left is replaced."""
        kept = [r for r in self.result.runs if (r.arm, r.repeat) != (run.arm, run.repeat)]
        self.result.runs = sorted([*kept, run], key=lambda r: (r.repeat, self._position(r.arm)))
        self.save()

    def save(self) -> None:
        """Bring the figures up to date and write the file, if there is one. Raises OSError."""
        self.result.summary = summarise(self.result)
        if self._path is not None:
            results.write(self.result, self._path)

    def row(self, side: str) -> ArmRow:
        """The arm's own row."""
        return next(row for row in self.result.arms if row.name == side)

    def _position(self, arm: str) -> int:
        return next(n for n, row in enumerate(self.result.arms) if row.name == arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole comparison. `loads` has one for each repeat, `watching` sees the machine."""

    scenario: Scenario
    sides: Sequence[Side]
    loads: Sequence[Load]
    logs: Path
    peers: Path
    salt: str
    watching: Callable[[bool], AbstractContextManager[Watching]] = watching_machine

    def order(self, store: Store) -> list[tuple[int, Side]]:
        """The runs that are still to be made: A B A B."""
        return [
            (repeat, side)
            for repeat in range(len(self.loads))
            for side in self.sides
            if not side.missing and not store.has(side.name, repeat)
        ]


def simulate_all(plan: Plan, store: Store, show: Show) -> None:
    """Every run in the simulator."""
    order = plan.order(store)
    for number, (repeat, side) in enumerate(order):
        load = plan.loads[repeat]
        show.begin(
            number=number, runs=len(order), side=side.name, repeat=repeat, doing="simulating"
        )
        begun = time.perf_counter()
        run = simulate_run(
            side,
            load,
            plan.scenario,
            repeat=repeat,
            on_call=lambda done, load=load: show.progress(  # type: ignore[misc]
                done=done, planned=load.calls, note=""
            ),
        )
        store.add(run)
        show.end(side=side.name, took_s=time.perf_counter() - begun)
    store.result.is_complete = store.has_all(len(plan.loads))
    store.save()


async def run_all(plan: Plan, store: Store, show: Show) -> None:
    """Every run live. When cancelled, what was measured is in the file before this returns.

    An arm that does not start is marked as missing, and the others go on.

    Raises:
        EngineError: an engine did not start.
    """
    order = plan.order(store)
    async with contextlib.AsyncExitStack() as stack:
        stage = _Stage(plan, stack)
        for number, (repeat, side) in enumerate(order):
            begun = time.perf_counter()
            say = partial(show.begin, number=number, runs=len(order), side=side.name, repeat=repeat)
            say(doing="starting")
            engines, target = await stage.engines_for(side)
            say(doing="running")
            if store.row(side.name).missing:
                show.end(side=side.name, took_s=0.0)
                continue
            work = _Work(plan=plan, store=store, side=side, repeat=repeat, show=show)
            try:
                run = await _one_run(work, engines, target)
                if is_stalled(run) and plan.scenario.measure.repeat_stalled:
                    say(doing=f"again, for {why_stalled(run.machine)}")
                    engines, target = await stage.engines_for(side)
                    await _one_run(work, engines, target, instead_of=run)
            except* EngineError as errors:
                # One arm that does not start must not cost the others their runs.
                if not store.has(side.name, repeat):
                    row = store.row(side.name)
                    row.missing, row.has_failed = str(_first(errors)), True
            show.end(side=side.name, took_s=time.perf_counter() - begun)
    store.result.is_complete = store.has_all(len(plan.loads))
    store.save()


def _first(errors: ExceptionGroup[EngineError]) -> BaseException:
    """What went wrong first, where several tasks of a run may have failed."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Stage:
    """The engines that serve now; one variant at a time, so that arms do not share the machine."""

    def __init__(self, plan: Plan, stack: contextlib.AsyncExitStack) -> None:
        self._plan = plan
        self._outer = stack
        self._own: contextlib.AsyncExitStack | None = None
        self._variant = ""
        self._now: tuple[Engines, Target] | None = None

    async def engines_for(self, side: Side) -> tuple[Engines, Target]:
        """Engines of the side's variant with empty caches."""
        if self._now is not None and self._variant == side.needs_own_engine:
            engines, _ = self._now
            if engines.reset_path is None or await empty_caches(engines):
                return self._now
        if self._own is not None:
            await self._own.aclose()
        self._own = await self._outer.enter_async_context(contextlib.AsyncExitStack())
        self._variant = side.needs_own_engine
        scenario = self._plan.scenario
        engines = await self._own.enter_async_context(
            engines_running(
                scenario.engine,
                variant=self._variant,
                tokens_max=max(load.tokens_max for load in self._plan.loads),
                logs=self._plan.logs,
            )
        )
        target = await prepare(engines, scenario)
        if scenario.engine.kind is EngineKind.VLLM:
            await warm_up(engines, self._plan.loads[0], scenario, target)
        self._now = engines, target
        await empty_caches(engines)
        return self._now


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One place in the order of runs, and who is told of it."""

    plan: Plan
    store: Store
    side: Side
    repeat: int
    show: Show


async def _one_run(
    work: _Work, engines: Engines, target: Target, *, instead_of: Run | None = None
) -> Run:
    """One run, which is in the file when this returns; in place of `instead_of` if it finished."""
    plan, side, repeat = work.plan, work.side, work.repeat
    again = "-again" if instead_of is not None else ""
    speed = plan.scenario.engine.pace
    load = paced(plan.loads[repeat], speed=speed)
    name = _file_name(side.name, [row.name for row in work.store.result.arms])
    label = f"{name}-{repeat}{again}"
    run = Run(arm=side.name, repeat=repeat, seed=repeat, log=f"{label}.log")
    run.replaced = _what_is_left(instead_of)
    scenario = _paced_scenario(plan.scenario, speed=speed)

    def progress(news: Progress) -> None:
        note = f"{news.programs_done}/{news.programs_planned} programs"
        note += f", {news.errors} errors" if news.errors else ""
        work.show.progress(done=news.calls_done, planned=news.calls_planned, note=note)

    try:
        async with (
            arm_running(
                side, engines, scenario, label=label, logs=plan.logs, peers=plan.peers
            ) as endpoint,
            failing(engines.urls, faults_of(scenario.engine).outages, speed=speed),
        ):
            with _machine_of(run, plan, knows_own=_starts_all(side, scenario)):
                if side.client == "replay":
                    await measure(
                        side,
                        endpoint,
                        engines,
                        load,
                        scenario,
                        run,
                        target=target,
                        salt=f"{plan.salt}/{repeat}{again}/{side.name}",
                        on_progress=progress,
                    )
                else:
                    agents = AgentLoad(
                        client=side.client, load=load, model=target.model, repeat=repeat
                    )
                    await run_agents(
                        agents, endpoint, engines, scenario, run, show=work.show.progress
                    )
            if endpoint.journal is not None:
                await _refuse_failures(endpoint, run)
        read_journal(run, endpoint, speed=speed)
    finally:
        # An attempt to make a stalled run again that did not finish leaves that one in place.
        if run.calls and (run.is_complete or instead_of is None):
            rescale(run, speed=speed)
            work.store.add(run)
    return run


@contextlib.contextmanager
def _machine_of(run: Run, plan: Plan, *, knows_own: bool) -> Iterator[None]:
    """Watch the machine while the block runs; `run` is told what it did, whatever happens."""
    watch: Watching | None = None
    try:
        with plan.watching(knows_own) as watch:
            yield
    finally:
        run.machine = watch.seen() if watch is not None else None


def _starts_all(side: Side, scenario: Scenario) -> bool:
    """Whether all that works for the run was started here, and can be told from others' work."""
    return scenario.engine.kind is not EngineKind.URL and side.kind is not Kind.URL


def _what_is_left(run: Run | None) -> Replaced | None:
    if run is None:
        return None
    assert run.machine is not None, "a run is made again for what the machine did"
    done = [program.jct_s for program in run.programs if program.jct_s is not None]
    return Replaced(machine=run.machine, jct_mean_s=sum(done) / len(done) if done else None)


async def _refuse_failures(endpoint: Endpoint, run: Run) -> None:
    """A policy that fails is stood in for by the plainest rule: no result of the arm's name."""
    failures = await policy_failures(endpoint.url)
    if failures:
        run.is_complete = False
        raise PolicyError(f"{run.arm}: policies failed {failures:.0f} times ({run.log} says how)")


def paced(load: Load, *, speed: float) -> Load:
    """The load in step with an engine that is `speed` times as fast."""
    if speed == 1.0:
        return load
    plans = [
        replace(
            plan,
            main=_paced(plan.main, speed),
            children=tuple(_paced(child, speed) for child in plan.children),
        )
        for plan in load.plans
    ]
    starts = [None if at is None else at / speed for at in load.starts_s]
    deadlines_s = {program: span / speed for program, span in load.deadlines_s.items()}
    return replace(load, plans=plans, starts_s=starts, deadlines_s=deadlines_s)


def _paced(conversation: PlannedConversation, speed: float) -> PlannedConversation:
    calls = tuple(replace(call, pause_s=call.pause_s / speed) for call in conversation.calls)
    delay_s = conversation.start_delay_s / speed
    return replace(conversation, calls=calls, start_delay_s=delay_s)


def _paced_scenario(scenario: Scenario, *, speed: float) -> Scenario:
    """The bound on waits keeps step as well."""
    if speed == 1.0:
        return scenario
    wait_s = in_seconds(parse_span(scenario.proxy.max_wait)) / speed
    proxy = scenario.proxy.model_copy(update={"max_wait": f"{round(wait_s * 1000)}ms"})
    return scenario.model_copy(update={"proxy": proxy})


def _file_name(name: str, arms: Iterable[str]) -> str:
    """The arm's name as that of a file, which no other of these arms has."""
    kept = _kept(name)
    is_own = all(_kept(other) != kept for other in arms if other != name)
    if is_own and len(kept) <= _NAME_CHARS_MAX:
        return kept
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{kept[: _NAME_CHARS_MAX - 9]}-{digest}"


def _kept(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
