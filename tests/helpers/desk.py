"""A desk before one engine of 10,000 tokens under the default admission."""

from __future__ import annotations

from typing import Any

from shorthand import answered, arrived, at, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    Command,
    Dispatch,
    Limits,
    StepClass,
    StepId,
    StepStarted,
    TimerFired,
    seconds,
)
from agentsched.policy import Choice

HEAD = prefix("head", 1_000)


class Desk:
    """One engine of 10,000 tokens; instants are seconds, names are programs."""

    def __init__(self, *, wait_s: float = 20.0, kv_tokens: int = 10_000, **params: object) -> None:
        admit = Choice(name="working-set", params={"cold_tokens": 100_000, **params})
        limits = Limits(wait_ns_max=seconds(wait_s))
        config = SchedulerConfig(profile="agentsched", choices={"admit": admit}, limits=limits)
        self.scheduler: Scheduler = build_scheduler(config)
        self.steps: dict[str, int] = {}
        self.feed(reported(kv_tokens=kv_tokens, cached_tokens=True), 0)

    def feed(self, event: Any, time_s: float) -> tuple[Command, ...]:
        commands = self.scheduler.handle(event, now=at(time_s))
        self.scheduler.check()
        return commands

    def ask(self, program: str, tokens: int, *, at: float) -> list[str]:
        number = self.steps[program] = self.steps.get(program, -1) + 1
        step = f"{program}{number}"
        event = arrived(step, program, tokens=tokens, prefixes=(HEAD, prefix(step, tokens)))
        return sent(self.feed(event, at))

    def night(self, program: str, tokens: int, *, at: float, **more: Any) -> list[str]:
        """A step of background work, or of another class."""
        number = self.steps[program] = self.steps.get(program, -1) + 1
        step, prompt = f"{program}{number}", (HEAD, prefix(f"{program}{number}", tokens))
        more = {"step_class": StepClass.BATCH, "prefixes": prompt, **more}
        return sent(self.feed(arrived(step, program, tokens=tokens, **more), at))

    def start(self, program: str, *, at: float) -> list[str]:
        return sent(self.feed(StepStarted(step=StepId(f"{program}{self.steps[program]}")), at))

    def answer(self, program: str, tokens: int, *, at: float, is_last: bool = False) -> list[str]:
        """The answer makes the context `tokens` long."""
        step = f"{program}{self.steps[program]}"
        event = answered(step, is_last=is_last, prompt=tokens - 10, cached=0, output=10)
        return sent(self.feed(event, at))

    def turn(self, program: str, tokens: int, *, at: float) -> None:
        """A whole turn that nobody waits for."""
        assert self.ask(program, tokens, at=at) == [f"{program}{self.steps[program]}"]
        self.start(program, at=at + 0.05)
        self.answer(program, tokens + 10, at=at + 0.1)

    def tick(self, *, at: float) -> list[str]:
        return sent(self.feed(TimerFired(), at))


def sent(commands: tuple[Command, ...]) -> list[str]:
    return [command.step for command in commands if isinstance(command, Dispatch)]
