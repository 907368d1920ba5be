"""One run of one arm: its load, what the engines said meanwhile, and rows of what happened."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from agentsched.kernel import JournalError
from agentsched.proxy.request import Dialect
from agentsched_bench.compare.arms import Side
from agentsched_bench.compare.journals import tell
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.results import Call, Program, Run
from agentsched_bench.compare.scenario import Scenario
from agentsched_bench.compare.stages import Endpoint, Engines
from agentsched_bench.compare.watch import watching
from agentsched_bench.live import replay as live
from agentsched_bench.live.arrivals import Arrivals, Process
from agentsched_bench.live.calibrate import Calibration
from agentsched_bench.live.client import Patience
from agentsched_bench.live.results import (
    CallRow,
    ProgramRow,
    Recorder,
    Result,
    RunRow,
    TraceRow,
)
from agentsched_bench.replay.journal_file import open_journal

_WARM_PROGRAMS: Final = 4
_WARM_CALLS: Final = 4
_WAIT: Final = re.compile(r"\bwait_ms=(\d+)")
_BYPASSED: Final = re.compile(r"\bbypassed=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What all runs of one engine have in common: the model's name, how it counts tokens."""

    model: str
    calibration: Calibration


async def prepare(engines: Engines, scenario: Scenario) -> Target:
    """Ask the engine itself, so that no proxy sees calls that are not the load's.

    Raises:
        EngineError: it does not answer.
    """
    arm = live.Arm(name="engine", url=engines.urls[0])
    model, calibration = await live.prepare([arm], _options(scenario))
    return Target(model=model, calibration=calibration)


async def warm_up(engines: Engines, load: Load, scenario: Scenario, target: Target) -> None:
    """Have every engine do a little of the load, unmeasured.

    What an engine does for the first time (compiling, allocating) must not be charged to the arm
    that happens to come first.
    """
    plans = [
        replace(
            plan,
            main=replace(
                plan.main,
                calls=tuple(replace(call, pause_s=0.0) for call in plan.main.calls[:_WARM_CALLS]),
            ),
            children=(),
            pool=None,
        )
        for plan in load.plans[:_WARM_PROGRAMS]
    ]
    for number, url in enumerate(engines.urls):
        row = RunRow(run=number, arm="warm-up", repeat=0, started_at="", salt=f"warm/{number}")
        recorder = Recorder(_scratch(), path=None)
        recorder.result.runs.append(row)
        await live.replay_run(
            plans,
            live.Arm(name="warm-up", url=url),
            row,
            replace(_options(scenario), starts_s=[0.0] * len(plans)),
            recorder,
            model=target.model,
            calibration=target.calibration,
        )


async def measure(
    side: Side,
    endpoint: Endpoint,
    engines: Engines,
    load: Load,
    scenario: Scenario,
    run: Run,
    *,
    target: Target,
    salt: str,
    on_progress: Callable[[live.Progress], None],
) -> None:
    """Replay the load on the endpoint. `run` gets what was measured, also when cancelled."""
    run.started_at = datetime.now(tz=UTC).isoformat(timespec="seconds")
    recorder = Recorder(_scratch(), path=None)
    row = RunRow(run=0, arm=side.name, repeat=run.repeat, started_at=run.started_at, salt=salt)
    recorder.result.runs.append(row)
    tells_tools = scenario.measure.tells_tools and side.profile is not None
    arm = live.Arm(name=side.name, url=endpoint.url, ids=side.ids, tells_tools=tells_tools)
    options = _options(scenario, load=load, salt=salt)
    try:
        async with watching(engines.urls, every_s=scenario.measure.sample_s) as watched:
            await live.replay_run(
                load.plans,
                arm,
                row,
                options,
                recorder,
                model=target.model,
                calibration=target.calibration,
                on_progress=on_progress,
            )
        run.is_complete = True
        run.readings = watched.readings
        run.preemptions, run.busy_share = watched.preemptions, watched.busy_share
    finally:
        run.duration_s = row.duration_s
        _take_rows(run, recorder.result, load)


def read_journal(run: Run, endpoint: Endpoint, *, speed: float) -> None:
    """Add what our proxy's journal tells of a run. The proxy must have ended.

    Pins and decisions are in seconds of an engine that ran `speed` times as fast, texts included.
    """
    if endpoint.journal is None or not endpoint.journal.exists() or not run.calls:
        return
    try:
        with open_journal(endpoint.journal) as entries:
            told = tell(entries, pace=speed)
    except (JournalError, OSError, EOFError) as error:
        run.note = "; ".join(filter(None, (run.note, f"journal not read: {error}")))
        return
    # A proxy that is new sees the load's first call first: that is when both clocks agree.
    offset_s = min(call.sent_s for call in run.calls) * speed
    names = {call.label: call.program for call in run.calls if call.label}
    for pin in told.pins:
        pin.program = names.get(pin.program, pin.program)
        pin.from_s += offset_s
        pin.to_s += offset_s
    for decision in told.decisions:
        decision.program = names.get(decision.program, decision.program)
        decision.at_s += offset_s
    run.pins, run.decisions, run.decisions_total = told.pins, told.decisions, told.totals


def rescale(run: Run, *, speed: float) -> None:
    """Turn seconds of the clock into those of an engine that ran `speed` times as fast; what the
    journal told is in these already."""
    if speed == 1.0:
        return
    run.duration_s *= speed
    for call in run.calls:
        call.sent_s *= speed
        call.latency_s *= speed
        call.ttft_s = None if call.ttft_s is None else call.ttft_s * speed
        call.held_s = None if call.held_s is None else call.held_s * speed
        call.refused_s *= speed
    for program in run.programs:
        program.started_s *= speed
        program.jct_s = None if program.jct_s is None else program.jct_s * speed
    for reading in run.readings:
        reading.at_s *= speed


def _options(scenario: Scenario, *, load: Load | None = None, salt: str = "") -> live.ReplayOptions:
    measure = scenario.measure
    options = live.ReplayOptions(
        dialect=Dialect(measure.dialect),
        arrivals=Arrivals(process=Process.RECORDED),
        salt=salt,
        patience=Patience(timeout_s=measure.timeout_s, attempts_max=measure.attempts),
    )
    if load is None:
        return options
    return replace(
        options,
        starts_s=load.starts_s,
        tenants=load.tenants,
        pools=load.pools,
        without_ids=load.without_ids,
        deadlines_s=load.deadlines_s,
    )


def _scratch() -> Result:
    return Result(
        schema="",
        command=[],
        seed=0,
        versions={},
        trace=TraceRow(name="", sha256="", programs=0, calls=0, is_synthetic=False),
        options={},
        arms=[],
    )


def _take_rows(run: Run, result: Result, load: Load) -> None:
    planned = {
        (plan.program, conversation.conversation, index): call
        for plan in load.plans
        for conversation in plan.conversations
        for index, call in enumerate(conversation.calls)
    }
    run.programs = [program_of(row) for row in result.programs]
    run.calls = []
    for row in result.calls:
        call = planned[row.program, row.conversation, row.step]
        known = call.keep_tokens + call.echo_tokens
        run.calls.append(call_of(row, known=known, tools=call.tools))


def program_of(row: ProgramRow) -> Program:
    """A replay's row as ours."""
    return Program(
        program=row.program,
        started_s=row.started_s,
        jct_s=row.jct_s,
        outcome=row.outcome,
        tenant=row.tenant,
    )


def call_of(row: CallRow, *, known: int = 0, tools: tuple[str, ...] = ()) -> Call:
    """A replay's row as ours; `known` and `tools` are the plan's."""
    said = row.decision or ""
    held = _WAIT.search(said)
    bypassed = _BYPASSED.search(said)
    # Lengths of texts are off by a little; nobody can know more than there is.
    known_tokens = min(known, row.prompt_tokens) if row.prompt_tokens else known
    return Call(
        program=row.program,
        conversation=row.conversation,
        step=row.step,
        sent_s=row.sent_s,
        latency_s=row.latency_s,
        ttft_s=row.ttft_s,
        held_s=int(held[1]) / 1000 if held else None,
        refused_s=row.refused_s,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        known_tokens=known_tokens,
        tenant=row.tenant,
        engine=row.engine or "",
        label=row.label or "",
        decision=said,
        bypassed=int(bypassed[1]) if bypassed else None,
        attempts=row.attempts,
        error=row.error,
        tools=tools,
    )
