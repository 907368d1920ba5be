"""What is simulated: arms, engines and load, and one run of one arm."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import ConfigError, Instant, Limits, Nanos, after, in_seconds, seconds
from agentsched.policy import Choice, load_profile
from agentsched.policy.registry import POINTS
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import Arrivals, Process
from agentsched_bench.sim.clients import Endings, ProgramRun
from agentsched_bench.sim.host import Outage, SimHost, Start, Tally
from agentsched_bench.workload.shape import PlannedProgram

#: Arms that are no profile: engines alone, and engines alone whose cache holds everything.
DIRECT: Final = "direct"
UNLIMITED: Final = "unlimited"

_WAIT: Final = seconds(15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison. `text` is how it was written."""

    text: str
    profile: str
    choices: Mapping[str, Choice] = field(default_factory=dict)
    is_unlimited: bool = False


def parse_arm(text: str) -> Arm:
    """Read `PROFILE[,POINT=POLICY][,POINT.PARAMETER=VALUE]...`, `direct` or `unlimited`.

    Raises:
        ConfigError: it is none of these.
    """
    name, *changes = text.split(",")
    is_bare = name in (DIRECT, UNLIMITED)
    profile = "passthrough" if is_bare else name
    chosen = load_profile(profile)
    choices: dict[str, Choice] = {}
    for change in changes:
        key, found, value = change.partition("=")
        point, _, parameter = key.partition(".")
        if not found or point not in POINTS:
            raise ConfigError(f"{text!r}: write POINT=POLICY or POINT.PARAMETER=VALUE")
        before = choices.get(point) or getattr(chosen, point)
        if parameter:
            params = {**before.params, parameter: _value(value)}
            choices[point] = replace(before, params=params)
        else:
            choices[point] = Choice(name=value)
    return Arm(text=text, profile=profile, choices=choices, is_unlimited=name == UNLIMITED)


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything but the arm and the seed.

    `programs` None means each plan once. More programs than plans replay some of them again, with
    their own content apart. `agent` tells agents apart for forecasts.
    """

    plans: Sequence[PlannedProgram]
    engines: Sequence[EngineConfig]
    arrivals: Arrivals
    programs: int | None = None
    wait_ns_max: Nanos = _WAIT
    endings: Endings = Endings.SPOKEN
    token_error: float = 0.0
    streams: bool = True
    outages: Sequence[Outage] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm, one seed."""

    runs: Sequence[ProgramRun]
    tally: Tally
    makespan_ns: Nanos
    busy_ns: int
    engines: int


def starts_of(scenario: Scenario, *, seed: int) -> list[Start]:
    """Which programs start when: shuffled by the seed, each plan as often as the others."""
    rng = random.Random(f"simulate/{seed}")
    count = scenario.programs or len(scenario.plans)
    order: list[tuple[int, PlannedProgram]] = []
    while len(order) < count:
        lap = list(scenario.plans)
        if scenario.arrivals.process is not Process.RECORDED:
            rng.shuffle(lap)
        copy = len(order) // len(lap)
        order.extend((copy, plan) for plan in islice(lap, count - len(order)))
    at_s = scenario.arrivals.starts_s([plan for _, plan in order], rng=rng)
    return [
        Start(plan=plan, at=Instant(seconds(at)), copy=str(copy) if copy else "", agent="agent")
        for (copy, plan), at in zip(order, at_s, strict=True)
    ]


def run_arm(arm: Arm, scenario: Scenario, *, seed: int) -> Outcome:
    """Simulate one arm."""
    starts = starts_of(scenario, seed=seed)
    engines = scenario.engines
    if arm.is_unlimited:
        tokens = sum(_tokens(start.plan) for start in starts)
        engines = [_unlimited(engine, tokens=tokens) for engine in engines]
    return play(arm, scenario, starts, engines=engines)


def play(
    arm: Arm, scenario: Scenario, starts: Sequence[Start], *, engines: Sequence[EngineConfig]
) -> Outcome:
    """Simulate these programs on these engines."""
    limits = Limits(wait_ns_max=scenario.wait_ns_max, bypasses_max=1_000_000)
    config = SchedulerConfig(profile=arm.profile, choices=arm.choices, limits=limits)
    host = SimHost(
        build_scheduler(config),
        engines=engines,
        endings=scenario.endings,
        token_error=scenario.token_error,
        streams=scenario.streams,
    )
    runs = host.run(starts, outages=scenario.outages)
    return Outcome(
        runs=runs,
        tally=host.tally,
        makespan_ns=Nanos(host.now),
        busy_ns=sum(engine.busy_ns for engine in host.engines.values()),
        engines=len(engines),
    )


def alone(scenario: Scenario) -> dict[str, float]:
    """Seconds that each plan takes alone on the first engine, idle and cold."""
    arm = parse_arm(DIRECT)
    found: dict[str, float] = {}
    for plan in scenario.plans:
        quiet = replace(scenario, outages=(), token_error=0.0)
        start = Start(plan=plan, at=Instant(0))
        outcome = play(arm, quiet, [start], engines=scenario.engines[:1])
        run = outcome.runs[0]
        assert run.ended_at is not None
        found[plan.program] = in_seconds(Nanos(run.ended_at))
    return found


def _tokens(plan: PlannedProgram) -> int:
    """An upper bound on the cache that a program can fill."""
    return sum(
        sum(piece.tokens for piece in call.pieces) + call.output_tokens
        for conversation in plan.conversations
        for call in conversation.calls
    )


def _unlimited(config: EngineConfig, *, tokens: int) -> EngineConfig:
    # Blocks that are only partly shared are held twice, hence the half more.
    blocks = max(config.blocks, 3 * tokens // (2 * config.block_size) + config.blocks)
    return replace(config, blocks=blocks, tier=None)


def outage(text: str) -> Outage:
    """Read `ENGINE@START+LENGTH`, seconds: `0@30+20`.

    Raises:
        ConfigError: it is not of that form.
    """
    try:
        engine, _, times = text.partition("@")
        start, _, length = times.partition("+")
        at = Instant(seconds(float(start)))
        return Outage(engine=int(engine), at=at, back_at=after(at, seconds(float(length))))
    except ValueError:
        raise ConfigError(f"not an outage: {text!r} (write ENGINE@START+SECONDS)") from None
