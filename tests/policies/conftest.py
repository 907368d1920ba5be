"""A floor of engines to ask policies about: events in short words, instants in seconds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from shorthand import answered, arrived, at, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    Instant,
    Limits,
    ProgramClosed,
    ProgramId,
    StepId,
    StepStarted,
    TimerFired,
    seconds,
)
from agentsched.policy import Choice
from agentsched.policy.registry import POINTS

HEAD = 100


class Floor:
    """A scheduler with engines e1, e2, ... Programs of one `head` share their first 100 tokens."""

    def __init__(
        self,
        profile: str = "passthrough",
        *,
        engines: int = 1,
        kv_tokens: int | None = 10_000,
        wait_s: float = 1_000.0,
        capabilities: dict[str, Any] | None = None,
        **choices: Choice,
    ) -> None:
        config = SchedulerConfig(
            profile=profile,
            choices=choices,
            limits=Limits(wait_ns_max=seconds(wait_s), bypasses_max=1_000_000),
        )
        self.scheduler = build_scheduler(config)
        self.now = 0.0
        for number in range(engines):
            self.report(f"e{number + 1}", kv_tokens=kv_tokens, **(capabilities or {}))

    @property
    def world(self) -> Any:
        return self.scheduler._books

    @property
    def instant(self) -> Instant:
        return at(self.now)

    def feed(self, event: Event, at: float | None = None) -> tuple[Command, ...]:
        self.now = self.now if at is None else at
        commands = self.scheduler.handle(event, now=self.instant)
        self.scheduler.check()
        self.asking_changes_nothing()
        return commands

    def report(self, name: str, *, at: float | None = None, **capabilities: Any) -> None:
        self.feed(reported(name, cached_tokens=True, **capabilities), at)

    def lose(self, name: str, *, at: float | None = None) -> tuple[Command, ...]:
        return self.feed(EngineLost(engine=EngineId(name), reason="crash"), at)

    def ask(
        self,
        step: str,
        program: str,
        tokens: int = 1_000,
        *,
        at: float | None = None,
        tenant: str = "t",
        head: str = "head",
        branch: str = "",
        **more: Any,
    ) -> dict[str, str]:
        """A step arrives; which steps were sent where because of it."""
        talk = program + branch
        event = arrived(
            step,
            program,
            conversation=talk,
            tenant=tenant,
            tokens=tokens,
            prefixes=(prefix(head, HEAD), prefix(f"{talk}/{tokens}", tokens)),
            **more,
        )
        return sent(self.feed(event, at))

    def start(self, step: str, *, at: float | None = None) -> dict[str, str]:
        return sent(self.feed(StepStarted(step=StepId(step)), at))

    def answer(
        self,
        step: str,
        *,
        at: float | None = None,
        prompt: int = 1_000,
        cached: int = 0,
        output: int = 10,
        is_last: bool = False,
    ) -> dict[str, str]:
        event = answered(step, is_last=is_last, prompt=prompt, cached=cached, output=output)
        return sent(self.feed(event, at))

    def close(self, program: str, *, at: float | None = None) -> tuple[Command, ...]:
        return self.feed(ProgramClosed(program=ProgramId(program), reason="done"), at)

    def tick(self, *, at: float) -> dict[str, str]:
        return sent(self.feed(TimerFired(), at))

    def rank(self, step: str) -> tuple[float, ...]:
        order = self.scheduler.policies.order
        record = self.scheduler.steps[StepId(step)]
        return order.rank(record, self.world, now=self.instant)

    def score(self, step: str, engine: str) -> float:
        place = self.scheduler.policies.place
        record = self.scheduler.steps[StepId(step)]
        view = self.scheduler.engines[EngineId(engine)]
        return place.score(record, view, self.world, now=self.instant)

    def asking_changes_nothing(self) -> None:
        """Every question about everything, twice: equal answers, equal policies."""
        before = pickle.dumps(self._state())
        assert self._ask_all() == self._ask_all()
        assert pickle.dumps(self._state()) == before

    def _state(self) -> list[Any]:
        policies = self.scheduler.policies
        return [vars(copy.deepcopy(getattr(policies, point))) for point in POINTS]

    def _ask_all(self) -> list[Any]:
        policies, now = self.scheduler.policies, self.instant
        answers: list[Any] = []
        for step in self.scheduler.steps.values():
            answers.append(policies.order.rank(step, self.world, now=now))
            answers.append(policies.order.priority(step, self.world, now=now))
            for engine in self.scheduler.engines.values():
                answers.append(policies.place.score(step, engine, self.world, now=now))
                answers.append(policies.admit.admit(step, engine, self.world, now=now))
        return answers


def sent(commands: tuple[Command, ...]) -> dict[str, str]:
    return {c.step: c.engine for c in commands if isinstance(c, Dispatch)}


@pytest.fixture
def floor() -> Callable[..., Floor]:
    return Floor
