"""What is simulated: arms, engines and load, and one run of one arm."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import Final

from agentsched.compose import SchedulerConfig, build_graphs, build_policies, build_scheduler
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    ConfigError,
    ConversationId,
    Instant,
    Limits,
    Nanos,
    ProgramId,
    in_seconds,
    seconds,
)
from agentsched.policy import Choice, load_profile
from agentsched.policy.registry import POINTS
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import Arrivals, Process
from agentsched_bench.oracles.bound import Bound, bound_of
from agentsched_bench.oracles.knowledge import TrueGraphs, TrueOrder
from agentsched_bench.sim.clients import Clients, Endings, ProgramRun, Start
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.faults import NO_FAULTS, Faults
from agentsched_bench.sim.faults import Outage as Outage
from agentsched_bench.sim.faults import outage as outage
from agentsched_bench.sim.host import SimHost, Tally
from agentsched_bench.workload.compose import MAIN_POOL
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
    #: What the arm knows that nobody can know; such an arm is an oracle.
    knows: frozenset[Knows] = frozenset()


class Knows(StrEnum):
    """What an oracle is told."""

    STEPS = "steps"  # how many calls a program has left, in place of the graph's forecast
    RETURNS = "returns"  # when a paused conversation comes back, likewise
    SRPT = "srpt"  # the exact work left: the shortest goes first
    BELADY = "belady"  # the engines' caches know the returns


def parse_arm(text: str) -> Arm:
    """Read `PROFILE[+ORACLE]...[,POINT=POLICY][,POINT.PARAMETER=VALUE]...`, `direct`, `unlimited`.

    Raises:
        ConfigError: it is none of these.
    """
    head, *changes = text.split(",")
    name, *told = head.split("+")
    try:
        knows = frozenset(Knows(word) for word in told)
    except ValueError:
        known = ", ".join(Knows)
        raise ConfigError(f"{text!r}: after + comes one of {known}") from None
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
    return Arm(
        text=text,
        profile=profile,
        choices=choices,
        is_unlimited=name == UNLIMITED,
        knows=knows,
    )


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
    faults: Faults = NO_FAULTS
    #: What each engine can do beside generating; none given: nothing.
    traits: Sequence[EngineTraits] = ()
    #: Tenants by name and share of the programs whose own are not recorded; none given: one tenant.
    tenants: Mapping[str, float] = field(default_factory=dict)
    #: How many programs of each closed loop of a composed workload run at a time.
    pools: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm, one seed."""

    runs: Sequence[ProgramRun]
    tally: Tally
    makespan_ns: Nanos
    busy_ns: int
    engines: int
    bound: Bound


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
    models = [model for traits in scenario.traits for model in traits.models]
    tenants, shares = list(scenario.tenants), list(scenario.tenants.values())
    return [
        Start(
            plan=plan,
            at=Instant(seconds(at)),
            copy=str(copy) if copy else "",
            agent="agent",
            tenant=plan.tenant or (rng.choices(tenants, shares)[0] if tenants else ""),
            model=rng.choice(models) if models else "",
            pool=plan.pool or (MAIN_POOL if scenario.arrivals.concurrency else ""),
        )
        for (copy, plan), at in zip(order, at_s, strict=True)
    ]


def run_arm(
    arm: Arm,
    scenario: Scenario,
    *,
    seed: int,
    on_turn: Callable[[JournalEntry], None] | None = None,
) -> Outcome:
    """Simulate one arm; `on_turn` is shown every turn of its scheduler."""
    starts = starts_of(scenario, seed=seed)
    engines = scenario.engines
    if arm.is_unlimited:
        tokens = sum(_tokens(start.plan) for start in starts)
        engines = [_unlimited(engine, tokens=tokens) for engine in engines]
    return play(arm, scenario, starts, engines=engines, on_turn=on_turn)


def play(
    arm: Arm,
    scenario: Scenario,
    starts: Sequence[Start],
    *,
    engines: Sequence[EngineConfig],
    on_turn: Callable[[JournalEntry], None] | None = None,
    scheduler: Callable[[], Scheduler] | None = None,
) -> Outcome:
    """Simulate these programs on these engines; `scheduler` makes another one than the arm's."""
    limits = Limits(wait_ns_max=scenario.wait_ns_max, bypasses_max=1_000_000)
    config = SchedulerConfig(profile=arm.profile, choices=arm.choices, limits=limits)
    future = _Future()
    traits = scenario.traits or [EngineTraits()] * len(engines)
    if Knows.BELADY in arm.knows:
        traits = [replace(one, is_clairvoyant=True) for one in traits]
    make = scheduler or (lambda: _scheduler(arm, config, future))
    host = SimHost(
        make(),
        engines=engines,
        endings=scenario.endings,
        token_error=scenario.token_error,
        streams=scenario.streams,
        on_turn=on_turn,
        traits=traits[: len(engines)],
        renew=make,
    )
    future.clients = host.clients
    loop = scenario.arrivals.concurrency
    runs = host.run(
        starts,
        outages=scenario.outages,
        faults=scenario.faults,
        pools={**({MAIN_POOL: loop} if loop else {}), **scenario.pools},
    )
    return Outcome(
        runs=runs,
        tally=host.tally,
        makespan_ns=Nanos(host.now),
        busy_ns=sum(engine.busy_ns for engine in host.engines.values()),
        engines=len(engines),
        bound=bound_of([(start.plan, start.copy) for start in starts], engines),
    )


class _Future:
    """The clients of a simulation, who know what they will do. They are there once it is set up."""

    clients: Clients

    def steps_left(self, program: ProgramId) -> int | None:
        return self.clients.steps_left(program)

    def work_left_s(self, program: ProgramId) -> float | None:
        return self.clients.work_left_s(program)

    def returns_at(self, conversation: ConversationId) -> Instant | None:
        return self.clients.returns_at(conversation)


def _scheduler(arm: Arm, config: SchedulerConfig, future: _Future) -> Scheduler:
    """The proxy's scheduler, or that of an oracle."""
    if not arm.knows - {Knows.BELADY}:
        return build_scheduler(config)
    policies = build_policies(config)
    if Knows.SRPT in arm.knows:
        policies = replace(policies, order=TrueOrder(future))
    graphs = TrueGraphs(
        build_graphs(config),
        future,
        steps=Knows.STEPS in arm.knows,
        returns=Knows.RETURNS in arm.knows,
    )
    return Scheduler(policies=policies, limits=config.limits, graph=graphs)


def alone(scenario: Scenario) -> dict[str, float]:
    """Seconds that each plan takes alone on the first engine, idle and cold."""
    arm = parse_arm(DIRECT)
    limits = Limits(wait_ns_max=scenario.wait_ns_max, bypasses_max=1_000_000)
    policies = build_policies(SchedulerConfig(profile=arm.profile, limits=limits))

    def pristine() -> Scheduler:
        # Policies are looked for among all that is installed, which takes longer than a program.
        # Engines alone ask for no forecast, so there is no graph to learn one.
        return Scheduler(policies=deepcopy(policies), limits=limits)

    quiet = replace(scenario, outages=(), faults=NO_FAULTS, token_error=0.0)
    models = scenario.traits[0].models if scenario.traits else ()
    found: dict[str, float] = {}
    for plan in scenario.plans:
        start = Start(plan=plan, at=Instant(0), model=models[0] if models else "")
        outcome = play(arm, quiet, [start], engines=scenario.engines[:1], scheduler=pristine)
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
