"""A scheduler in the hand: push events with defaults, read commands, check on the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from shorthand import arrived, finished, prefix, reported, tool_call

from agentsched.compose import SchedulerConfig, build_policies
from agentsched.kernel import Scheduler
from agentsched.model import (
    SECOND,
    Command,
    Event,
    Instant,
    Limits,
    StepId,
    StepStarted,
    TimerFired,
)
from agentsched.policy import Admission, Admitted, PolicySet, Retention


class Scripted:
    """All six policies at once; each answer is a value that the test sets, or a function."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.rank_of: Callable[[Any], Any] = lambda step: (float(step.arrived_at),)
        self.priority_of: Callable[[Any], Any] = lambda step: 0
        self.score_of: Callable[[Any, Any], Any] = lambda step, engine: 0.0
        self.admission: Callable[[Any, Any], Admission] = lambda step, engine: Admitted()
        self.room: Callable[[Any], Any] = lambda engine: True
        self.retention: Callable[[Any], Retention | None] = lambda pause: None
        self.warm: Callable[[Any], Instant | None] = lambda pause: None
        self.share_of: Callable[[Any], Any] = lambda tenant: None

    def observe(self, event: Event, *, now: Instant) -> None:
        self.seen.append(event)

    def rank(self, step: Any, world: Any, *, now: Instant) -> Any:
        return self.rank_of(step)

    def priority(self, step: Any, world: Any, *, now: Instant) -> Any:
        return self.priority_of(step)

    def score(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Any:
        return self.score_of(step, engine)

    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Admission:
        return self.admission(step, engine)

    def has_room(self, engine: Any, world: Any, *, now: Instant) -> Any:
        return self.room(engine)

    def retain(self, pause: Any, world: Any, *, now: Instant) -> Retention | None:
        return self.retention(pause)

    def warm_at(self, pause: Any, world: Any, *, now: Instant) -> Instant | None:
        return self.warm(pause)

    def rank_tenant(self, tenant: Any, world: Any, *, now: Instant) -> Any:
        return self.share_of(tenant)

    def as_set(self) -> PolicySet:
        points = ("order", "admit", "place", "pin", "prefetch", "share")
        return PolicySet(
            profile="scripted",
            names=dict.fromkeys(points, "scripted"),
            order=self,
            admit=self,
            place=self,
            pin=self,
            prefetch=self,
            share=self,
        )


@dataclass
class Rig:
    """Events in the test's own short words. `now` moves only where the test moves it."""

    scheduler: Scheduler
    policy: Scripted
    now: int = 0
    commands: list[Command] = field(default_factory=list)

    def push(self, event: Event, *, at: float | None = None) -> tuple[Command, ...]:
        """Feed one event, `at` seconds after the start where that is given."""
        if at is not None:
            self.now = round(at * SECOND)
        commands = self.scheduler.handle(event, now=Instant(self.now))
        self.scheduler.check()
        self.commands += commands
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "the timer would spin"
        return commands

    def engine(self, name: str = "e1", *, at: float | None = None, **capabilities: Any) -> Any:
        return self.push(reported(name, **{"pins": True} | capabilities), at=at)

    def arrive(
        self,
        step: str,
        *,
        program: str = "p1",
        conversation: str | None = None,
        tenant: str = "t1",
        at: float | None = None,
        tokens: int = 100,
        **more: Any,
    ) -> tuple[Command, ...]:
        more.setdefault("prefixes", (prefix(f"x-{step}", tokens),))
        talk = conversation or f"{program}/main"
        event = arrived(step, program, conversation=talk, tenant=tenant, tokens=tokens, **more)
        return self.push(event, at=at)

    def start(self, step: str, *, at: float | None = None) -> tuple[Command, ...]:
        return self.push(StepStarted(step=StepId(step)), at=at)

    def finish(
        self,
        step: str,
        *,
        at: float | None = None,
        tools: Mapping[str, str] | None = None,
        prompt: int = 100,
        cached: int | None = 0,
        output: int = 10,
        finish_reason: str = "",
    ) -> tuple[Command, ...]:
        calls = (tool_call(call, tool) for call, tool in (tools or {}).items())
        usage: Any = {"prompt": prompt, "cached": cached, "output": output}
        return self.push(finished(step, *calls, finish_reason=finish_reason, **usage), at=at)

    def timer(self, *, at: float | None = None) -> tuple[Command, ...]:
        """Fire the timer, at the scheduler's own deadline unless told otherwise."""
        if at is None:
            deadline = self.scheduler.next_deadline()
            assert deadline is not None, "nothing to wait for"
            self.now = deadline
        return self.push(TimerFired(), at=at)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Make rigs: `make_rig(profile=...)` for the built-in policies, else scripted ones."""
    rigs: list[Rig] = []

    def make(*, profile: str | None = None, graph: Any = None, **limits: Any) -> Rig:
        policy = Scripted()
        policies = build_policies(SchedulerConfig(profile=profile)) if profile else policy.as_set()
        scheduler = Scheduler(policies=policies, limits=Limits(**limits), graph=graph)
        rigs.append(Rig(scheduler=scheduler, policy=policy))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.scheduler.check()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """Scripted policies, default limits, no engine yet."""
    return make_rig()
