"""A queue of several tenants before one engine, by the real scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from shorthand import arrived, finished, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    SECOND,
    Dispatch,
    EngineId,
    Event,
    Instant,
    Limits,
    Nanos,
    TenantConfigured,
    TenantId,
)
from agentsched.policy import Choice


@dataclass
class Queue:
    """Steps of 1,000 prompt tokens and 100 of output that run one after the other."""

    scheduler: Scheduler
    now: int = 0
    sent: list[str] = field(default_factory=list)
    count: int = 0

    def feed(self, event: Event) -> None:
        commands = self.scheduler.handle(event, now=Instant(self.now))
        self.scheduler.check()
        self.sent += [c.step for c in commands if isinstance(c, Dispatch)]

    def ask(self, tenant: str, *, program: str = "", steps: int = 1, **more: Any) -> None:
        """So many steps of so many programs, named `tenant.number`."""
        for _ in range(steps):
            self.count += 1
            name = program or f"{tenant}-p{self.count}"
            step = f"{tenant}.{self.count}"
            tokens = more.pop("tokens", 1_000)
            given = {"output_tokens_expected": 100, "prefixes": (prefix(step, tokens),)} | more
            self.feed(arrived(step, name, tenant=tenant, tokens=tokens, **given))

    def weigh(self, tenant: str, weight: float) -> None:
        self.feed(TenantConfigured(tenant=TenantId(tenant), weight=weight))

    def serve(self, count: int, *, cached: int = 0, output: int = 100) -> list[str]:
        """End so many steps, each as the next one begins; who they were."""
        done = []
        for _ in range(count):
            running = self.scheduler.engines[EngineId("e")].running
            if not running:
                break
            step = next(iter(running.values()))
            done.append(step.tenant)
            self.now += SECOND
            prompt = step.prompt_tokens
            self.feed(finished(step.step, prompt=prompt, cached=cached, output=output))
        return done


@pytest.fixture
def make_queue() -> Callable[..., Queue]:
    """Make queues before an engine that runs one step at a time: `make_queue("weighted")`."""

    def make(share: str, **params: Any) -> Queue:
        limits = Limits(wait_ns_max=Nanos(10**15), running_steps_per_engine_max=1)
        choice = Choice(name=share, params=params)
        config = SchedulerConfig(profile="passthrough", limits=limits, choices={"share": choice})
        queue = Queue(build_scheduler(config))
        queue.feed(reported())
        return queue

    return make
