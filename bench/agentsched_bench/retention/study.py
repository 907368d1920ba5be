"""Play one reference string through many caches at once, and bill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
)
from agentsched.policy import Choice, PinPolicy, load
from agentsched_bench.retention.hindsight import Hindsight
from agentsched_bench.retention.orders import ByPolicy, Clairvoyant, least_recent
from agentsched_bench.retention.pools import Bill, Pool
from agentsched_bench.retention.reference import Reference

ENGINE: Final = EngineId("e")
#: Arms that are no pin policy.
BELADY: Final = "belady"
LRU: Final = "lru"
LRU_PREFIX: Final = "lru+prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A name in the tables, and the pin policy behind it, where it is one."""

    name: str
    choice: Choice | None = None
    #: What it is told of the future, for `split`: no policy can know that.
    knows_ends: bool = False
    knows_returns: bool = False


ARMS: Final = (
    Arm(name=BELADY),
    Arm(name=LRU),
    Arm(name=LRU_PREFIX),
    Arm(name="saga", choice=Choice(name="saga")),
    Arm(name="continuum", choice=Choice(name="continuum")),
    Arm(name="continuum-static", choice=Choice(name="continuum-static")),
    Arm(name="kvflow", choice=Choice(name="kvflow")),
    Arm(name="value", choice=Choice(name="value")),
)

#: Arms that say what `value` loses, and to what.
SPLIT: Final = (
    Arm(name=BELADY),
    Arm(name="value", choice=Choice(name="value")),
    Arm(name="ends known", choice=Choice(name="value"), knows_ends=True),
    Arm(name="returns known", choice=Choice(name="value"), knows_returns=True),
    Arm(name="both known", choice=Choice(name="value"), knows_ends=True, knows_returns=True),
)


@dataclass(slots=True, kw_only=True)
class Lane:
    """One arm with one pool."""

    arm: str
    share: float
    pool: Pool
    policy: ByPolicy | None = None
    #: Cached tokens of calls under way.
    cached: dict[StepId, int] = field(default_factory=dict)

    @property
    def bill(self) -> Bill:
        return self.pool.bill


def play(
    reference: Reference, *, arms: Sequence[Arm], capacities: Mapping[float, int]
) -> list[Lane]:
    """All arms with all pools over the same course of events.

    `capacities` are tokens by the name of the pool (its share of the live tokens).
    """
    scheduler = build_scheduler(SchedulerConfig(profile="passthrough"))
    scheduler.handle(
        EngineReported(
            engine=ENGINE,
            capabilities=Capabilities(prefix_cache=True, cached_tokens=True, pins=False),
            load=EngineLoad(),
        ),
        now=Instant(0),
    )
    programs: dict[ConversationId, ProgramId] = {}
    lanes = [
        _lane(arm, share, capacity, reference, scheduler, programs)
        for share, capacity in capacities.items()
        for arm in arms
    ]
    for moment in reference.moments:
        event, now = moment.event, moment.at
        if isinstance(event, StepArrived):
            programs[event.conversation] = event.program
        scheduler.handle(event, now=now)
        for lane in lanes:
            cached: int | None = None
            if isinstance(event, StepFinished):
                cached = lane.cached.pop(event.step, None)
            if lane.policy is not None:
                lane.policy.world.used = lane.pool.used
                lane.policy.observe(event, now=now, cached=cached)
            if moment.begins is not None:
                assert isinstance(event, StepArrived)
                is_counted = moment.is_counted
                lane.cached[event.step] = lane.pool.begin(
                    moment.begins, now=now, is_counted=is_counted
                )
            if moment.ends is not None:
                lane.pool.end(moment.ends, now=now)
    for lane in lanes:
        lane.pool.check()
    return lanes


def _lane(
    arm: Arm,
    share: float,
    capacity: int,
    reference: Reference,
    scheduler: Scheduler,
    programs: Mapping[ConversationId, ProgramId],
) -> Lane:
    policy = None
    if arm.choice is not None:
        pin = cast("PinPolicy", load("pin", arm.choice.name, arm.choice.params))
        if arm.knows_ends or arm.knows_returns:
            pin = Hindsight(pin, reference, ends=arm.knows_ends, returns=arm.knows_returns)
        policy = ByPolicy(pin, scheduler, capacity=capacity, programs=programs)
        pool = Pool(capacity=capacity, order=policy)
    elif arm.name == BELADY:
        pool = Pool(capacity=capacity, order=Clairvoyant(reference))
    else:
        pool = Pool(capacity=capacity, order=least_recent, shares_heads=arm.name != LRU)
    return Lane(arm=arm.name, share=share, pool=pool, policy=policy)
