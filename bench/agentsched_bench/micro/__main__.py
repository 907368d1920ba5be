"""What one turn of the scheduler costs, in microseconds of this machine's CPU.

    python -m agentsched_bench.micro [--programs 2000] [--waiting 1000] [--repeat 5]
    python -m agentsched_bench.micro sdk       # what the SDK costs an agent

`turn` is the mean over the events of whole steps (arrival, first token, end, tool start and end)
with that many live programs and nobody held. `held` is the mean over events while so many steps
wait behind full engines that the policies hold them back, so that every turn ranks them all.
`backlog` is one turn: an engine comes up and all who wait go at once. The best of the repeats
counts: everything else on the machine only adds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from time import process_time_ns

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    EngineReported,
    Event,
    Instant,
    Limits,
    Prefix,
    PrefixId,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    StepStarted,
    TenantId,
    ToolCall,
    ToolFinished,
    ToolName,
    ToolStarted,
    Usage,
)
from agentsched.policy import Choice
from agentsched_bench.micro import sdk

ENGINES = 4
PREFIXES = 8
PROFILES = ("passthrough", "fcfs")
PINNING = {"pin": Choice(name="fixed")}


class Feeder:
    """Feeds events a microsecond apart and adds up what they cost."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._now = 0
        self.events = 0
        self.spent_ns = 0

    def feed(self, *events: Event) -> None:
        handle = self._scheduler.handle
        instants = [Instant(self._now + 1_000 * (n + 1)) for n in range(len(events))]
        started = process_time_ns()
        for event, now in zip(events, instants, strict=True):
            handle(event, now=now)
        self.spent_ns += process_time_ns() - started
        self.events += len(events)
        self._now = instants[-1]

    def reset(self) -> None:
        self.events = self.spent_ns = 0

    @property
    def mean_us(self) -> float:
        return self.spent_ns / self.events / 1_000


def engine(number: int, *, running_max: int) -> Event:
    return EngineReported(
        engine=EngineId(f"e{number}"),
        capabilities=Capabilities(pins=True, running_max=running_max),
        load=EngineLoad(running=3, waiting=0, kv_usage=0.5),
    )


def arrival(program: int, step: int) -> StepArrived:
    return StepArrived(
        step=StepId(f"s{program}-{step}"),
        program=ProgramId(f"p{program}"),
        conversation=ConversationId(f"p{program}/main"),
        tenant=TenantId(f"t{program % 10}"),
        prompt_tokens=20_000,
        prefixes=tuple(
            Prefix(prefix=PrefixId(f"{program:08x}{n:08x}"), tokens=2_000 * (n + 1))
            for n in range(PREFIXES)
        ),
    )


def step_events(program: int, step: int) -> tuple[Event, ...]:
    """One whole step of a program, and its tool."""
    arrived = arrival(program, step)
    key, tool = CallId(f"k{program}-{step}"), ToolName("bash")
    return (
        arrived,
        StepStarted(step=arrived.step),
        StepFinished(
            step=arrived.step,
            usage=Usage(prompt_tokens=20_000, cached_tokens=18_000, output_tokens=200),
            tool_calls=(ToolCall(call_id=key, tool=tool),),
            finish_reason="tool_calls",
        ),
        ToolStarted(program=arrived.program, call_id=key, tool=tool),
        ToolFinished(program=arrived.program, call_id=key, tool=tool),
    )


def turn_us(config: SchedulerConfig, *, programs: int) -> float:
    """Mean cost of an event with `programs` live programs and nobody held."""
    feeder = Feeder(build_scheduler(config))
    feeder.feed(*(engine(number, running_max=4_096) for number in range(ENGINES)))
    for step in range(4):
        if step == 1:  # the first round opens them
            feeder.reset()
        for program in range(programs):
            feeder.feed(*step_events(program, step))
    return feeder.mean_us


def held_us(config: SchedulerConfig, *, waiting: int, events: int = 200) -> float:
    """Mean cost of an event while `waiting` steps are held by the admission policy."""
    feeder = Feeder(build_scheduler(config))
    feeder.feed(*(engine(number, running_max=1) for number in range(ENGINES)))
    for program in range(waiting + ENGINES):
        feeder.feed(arrival(program, 0))
    feeder.reset()
    for number in range(events):
        feeder.feed(engine(number % ENGINES, running_max=1))
    return feeder.mean_us


def backlog_us(config: SchedulerConfig, *, waiting: int) -> float:
    """Cost of the turn in which an engine comes up and all who wait go to it."""
    feeder = Feeder(build_scheduler(config))
    for program in range(waiting):
        feeder.feed(arrival(program, 0))
    feeder.reset()
    feeder.feed(engine(0, running_max=4_096))
    return feeder.mean_us


def best(measure: Callable[[], float], *, repeat: int) -> float:
    return min(measure() for _ in range(repeat))


def main() -> None:
    if sys.argv[1:2] == ["sdk"]:
        sdk.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="What one turn of the scheduler costs.")
    parser.add_argument("--programs", type=int, default=2_000)
    parser.add_argument("--waiting", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    programs, waiting, repeat = options.programs, options.waiting, options.repeat
    limits = Limits(running_steps_per_engine_max=max(2_048, waiting))
    print(f"CPU microseconds: {programs} programs, {waiting} waiting, best of {repeat}")
    print(f"{'profile':<14}{'turn':>10}{'held':>10}{'backlog':>12}")
    for profile in PROFILES:
        config = SchedulerConfig(profile=profile, choices=PINNING, limits=limits)
        holding = SchedulerConfig(
            profile=profile, choices={**PINNING, "admit": Choice(name="depth")}, limits=limits
        )
        cells = (
            best(lambda c=config: turn_us(c, programs=programs), repeat=repeat),  # type: ignore[misc]
            best(lambda c=holding: held_us(c, waiting=waiting), repeat=repeat),  # type: ignore[misc]
            best(lambda c=config: backlog_us(c, waiting=waiting), repeat=repeat),  # type: ignore[misc]
        )
        print(f"{profile:<14}{cells[0]:>10.1f}{cells[1]:>10.1f}{cells[2]:>12.1f}")


if __name__ == "__main__":
    main()
