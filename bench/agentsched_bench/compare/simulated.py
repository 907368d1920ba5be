"""A scenario in the simulator: the same load and arms, virtual time, the same kind of result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    ConfigError,
    Instant,
    Limits,
    Nanos,
    StepArrived,
    TenantConfigured,
    TenantId,
    in_seconds,
    parse_span,
    seconds,
)
from agentsched_bench.compare.arms import Kind, Side, parse_side
from agentsched_bench.compare.fleet import engines_of, faults_of, roomy
from agentsched_bench.compare.journals import Told, tell
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.results import Call, Run
from agentsched_bench.compare.scenario import EngineSpec, Scenario
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import Arrivals, Process
from agentsched_bench.live.identity import tells_deadlines, tells_the_end
from agentsched_bench.sim import arms as sim_arms
from agentsched_bench.sim.clients import ATTEMPTS_MAX, Endings, Start
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.shape import PlannedProgram

_UNHURRIED: Final = 1_000_000


def why_not(side: Side) -> str:
    """Why an arm cannot be simulated; empty when it can."""
    if side.kind in (Kind.DIRECT, Kind.UNLIMITED, Kind.PROXY):
        return ""
    if side.kind is Kind.PLUGIN and side.profile is not None:
        return ""
    return f"{side.name} has no model"


def alone_seconds(loads: Iterable[Load], spec: EngineSpec) -> dict[str, float]:
    """Seconds that each program takes alone on an idle engine with a cold cache, by the model.

    Raises:
        ConfigError: a program has other calls than one of the same name in an earlier load, or one
            that is too long for the engine.
    """
    config = engines_of(spec)[0]
    found: dict[str, float] = {}
    known: dict[str, object] = {}
    for load in loads:
        _refuse_too_long(load, [config])
        plans = [plan for plan in load.plans if plan.program not in found]
        for plan in load.plans:
            if known.setdefault(plan.program, _asked(plan)) != _asked(plan):
                raise ConfigError(f"{plan.program!r} is another program in another repeat")
        scenario = sim_arms.Scenario(
            plans=plans, engines=[config], arrivals=Arrivals(process=Process.RECORDED)
        )
        found |= sim_arms.alone(scenario)
    return found


def _refuse_too_long(load: Load, engines: Sequence[EngineConfig]) -> None:
    """Raises ConfigError: a call is longer than any of these engines takes."""
    room = max(engine.max_model_len for engine in engines)
    longest = max(
        (
            call.prompt_tokens + call.output_tokens
            for plan in load.plans
            for talk in plan.conversations
            for call in talk.calls
        ),
        default=0,
    )
    if longest > room:
        raise ConfigError(
            f"a call of {longest:,} tokens does not fit the engine's model, which takes {room:,}: "
            "change workload.context_tokens_max, or engine.max_model_len and engine.blocks (with "
            "measure.alone=none a live run asks no model)"
        )


def _asked(plan: PlannedProgram) -> object:
    """What decides how long a program takes alone: its calls, whatever their content is called."""
    return [
        replace(talk, calls=tuple(replace(call, pieces=()) for call in talk.calls), system_tokens=0)
        for talk in plan.conversations
    ]


def simulate_run(
    side: Side, load: Load, scenario: Scenario, *, repeat: int, on_call: Callable[[int], None]
) -> Run:
    """One arm under one load, to its end."""
    entries: list[JournalEntry] = []
    arrived = 0

    def take(entry: JournalEntry) -> None:
        nonlocal arrived
        entries.append(entry)
        if isinstance(entry.event, StepArrived):
            arrived += 1
            if arrived % 50 == 0:
                on_call(arrived)

    host = _host(side, load, scenario, on_turn=take)
    _play(host, _heard(load, side), scenario)
    run = Run(
        arm=side.name,
        repeat=repeat,
        seed=repeat,
        duration_s=in_seconds(Nanos(host.now)),
        is_complete=True,
    )
    _fill(run, tell(entries, origin=Instant(0)), host, load)
    return run


def journal_of(profile: str, load: Load, scenario: Scenario) -> list[JournalEntry]:
    """The journal that our proxy would write under this load, by the simulator."""
    side = parse_side(profile, engine=scenario.engine)
    side = replace(side, client=scenario.measure.client)
    entries: list[JournalEntry] = []
    host = _host(side, load, scenario, on_turn=entries.append)
    _play(host, _heard(load, side), scenario)
    return entries


def _host(
    side: Side, load: Load, scenario: Scenario, *, on_turn: Callable[[JournalEntry], None]
) -> SimHost:
    limits = Limits(wait_ns_max=parse_span(scenario.proxy.max_wait), bypasses_max=_UNHURRIED)
    profile = side.profile or "passthrough"
    config = SchedulerConfig(profile=profile, choices=side.choices, limits=limits)
    engines = engines_of(scenario.engine)
    _refuse_too_long(load, engines)
    if side.kind is Kind.UNLIMITED:
        engines = [roomy(engine, tokens=load.tokens_max) for engine in engines]
    is_replay = side.client == "replay"
    return SimHost(
        build_scheduler(config),
        engines=engines,
        endings=_endings(side),
        on_turn=on_turn,
        traits=[EngineTraits(pins=side.kind is Kind.PLUGIN)] * len(engines),
        tells_tools=_tells_tools(side, scenario),
        # An agent is as patient as its own library.
        attempts_max=scenario.measure.attempts if is_replay else ATTEMPTS_MAX,
    )


def _endings(side: Side) -> Endings:
    """How programs end. A real agent's last answer calls no tool; a replay's answers have an exact
    length and end with `length`, so nothing tells unless its clients' convention for ids does."""
    if side.client != "replay":
        return Endings.SPOKEN
    return Endings.DECLARED if tells_the_end(side.ids) else Endings.SILENT


def _tells_tools(side: Side, scenario: Scenario) -> bool:
    """Whether a proxy learns which tools a pause is for, as it does live."""
    if side.client != "replay":
        return True
    return scenario.measure.tells_tools and side.profile is not None


def _heard(load: Load, side: Side) -> Load:
    """The load as the side's programs speak of it."""
    return load if tells_deadlines(side.ids) else replace(load, deadlines_s={})


def _start(plan: PlannedProgram, load: Load, *, at_s: float | None) -> Start:
    # Who sends no ids says nothing of a deadline either, nor that it is over.
    has_ids = plan.program not in load.without_ids
    return Start(
        plan=plan,
        at=Instant(seconds(at_s or 0.0)),
        tenant=load.tenants.get(plan.program, ""),
        pool=plan.pool or "" if at_s is None else "",
        deadline_s=load.deadlines_s.get(plan.program) if has_ids else None,
        is_silent=not has_ids,
    )


def _play(host: SimHost, load: Load, scenario: Scenario) -> None:
    starts = [
        _start(plan, load, at_s=at) for plan, at in zip(load.plans, load.starts_s, strict=True)
    ]
    weights = [
        TenantConfigured(tenant=TenantId(name), weight=weight)
        for name, weight in scenario.weights.items()
    ]
    host.run(starts, faults=faults_of(scenario.engine), pools=load.pools, tenants=weights)


def _fill(run: Run, told: Told, host: SimHost, load: Load) -> None:
    """Give the run its rows, under the names that the load has."""
    names = {
        str(found.program): plan.program
        for found, plan in zip(host.clients.runs, load.plans, strict=True)
    }
    talks = {
        f"{found.program}/{index}": talk.conversation
        for found, plan in zip(host.clients.runs, load.plans, strict=True)
        for index, talk in enumerate(plan.conversations)
    }
    for call in told.calls:
        call.program = names.get(call.program, call.program)
        call.conversation = talks.get(call.conversation, call.conversation)
        call.tenant = load.tenants.get(call.program, "")
    _note_known(told.calls, load)
    for pin in told.pins:
        pin.program = names.get(pin.program, pin.program)
        pin.conversation = talks.get(pin.conversation, pin.conversation)
    for decision in told.decisions:
        decision.program = names.get(decision.program, decision.program)
    for program in told.programs:
        program.program = names.get(program.program, program.program)
        program.tenant = load.tenants.get(program.program, "")
    run.calls, run.programs = told.calls, told.programs
    run.pins, run.decisions, run.decisions_total = told.pins, told.decisions, told.totals
    _end_as_told(run, host, names)
    busy_ns = sum(engine.busy_ns for engine in host.engines.values())
    run.busy_share = busy_ns / max(1, int(host.now) * len(host.engines))
    run.preemptions = float(sum(engine.preemptions for engine in host.engines.values()))


def _note_known(calls: Iterable[Call], load: Load) -> None:
    """What each call had of earlier ones, as planned, and as live runs have it: a journal does not
    tell where a prompt was written anew."""
    plans = {talk.conversation: talk for plan in load.plans for talk in plan.conversations}
    answered: dict[str, int] = {}
    for call in calls:
        index = answered.get(call.conversation, 0)
        planned = plans[call.conversation].calls[index]
        call.known_tokens = planned.keep_tokens + planned.echo_tokens
        # Where a call failed, its client tries the same again.
        answered[call.conversation] = index + (not call.error)


def _end_as_told(run: Run, host: SimHost, names: dict[str, str]) -> None:
    """The clients know best when a program was over, and whether it gave up."""
    ends = {names[str(found.program)]: found for found in host.clients.runs}
    for program in run.programs:
        found = ends[program.program]
        if found.is_failed or found.ended_at is None:
            program.jct_s, program.outcome = None, "failed"
        else:
            program.started_s = in_seconds(Nanos(found.started_at))
            program.jct_s = in_seconds(Nanos(found.ended_at - found.started_at))
            program.outcome = "completed"


def simulated_sides(sides: Sequence[Side]) -> list[Side]:
    """The same sides; those that have no model are marked as missing, and no others are: nothing
    has to be installed, and modelled engines pin whatever they are a model of."""
    return [replace(side, missing=why_not(side)) for side in sides]
