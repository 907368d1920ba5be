"""What must hold in every run: checked at each turn of the scheduler, and once all is quiet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from agentsched.kernel import JournalEntry
from agentsched.model import (
    SECOND,
    Dispatch,
    Instant,
    Pin,
    PinId,
    Prefetch,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    Unpin,
    between,
)
from agentsched.proxy.gateway import Gateway
from agentsched_bench.chaos.engine import SimulatedEngine

#: All of the scheduler's own invariants are checked at each of so many turns.
_CHECK_EVERY: Final = 5
#: A process that was stopped for so long can keep no promise meanwhile.
_PAUSE_NS_MAX: Final = 31 * SECOND


class Witness:
    """An `EventSink` that reads every turn: no step is lost, ended twice or held for too long."""

    def __init__(self, violations: list[str]) -> None:
        self._violations = violations
        self._gateway: Gateway | None = None
        self.entries: list[JournalEntry] = []
        self._waiting: dict[StepId, Instant] = {}
        self._alive: set[StepId] = set()
        self._ended: Counter[StepId] = Counter()
        self._pinned: Counter[PinId] = Counter()
        self._unpinned: Counter[PinId] = Counter()

    def watch(self, gateway: Gateway) -> None:
        """Check this proxy's scheduler from now on."""
        self._gateway = gateway

    def write(self, entry: JournalEntry) -> None:
        self.entries.append(entry)
        event = entry.event
        match event:
            case StepArrived():
                self._alive.add(event.step)
                self._waiting[event.step] = entry.now
            case StepFinished() | StepCancelled():
                self._end(event.step)
            case StepFailed():
                if event.is_retryable:
                    self._waiting[event.step] = entry.now
                else:
                    self._end(event.step)
            case _:
                pass
        for command in entry.commands:
            match command:
                case Dispatch():
                    self._told(command.step, entry.now)
                case Reject():
                    self._told(command.step, entry.now)
                    self._end(command.step)
                case Pin() | Prefetch():
                    self._pinned[command.pin] += 1
                case Unpin():
                    self._unpinned[command.pin] += 1
                case _:
                    pass
        if self._gateway is not None and len(self.entries) % _CHECK_EVERY == 0:
            self._gateway.host.scheduler.check()

    def _told(self, step: StepId, now: Instant) -> None:
        since = self._waiting.pop(step, None)
        if since is None:
            self._violations.append(f"step {step} was decided twice, or never asked for")
            return
        assert self._gateway is not None
        bound = self._gateway.host.scheduler.limits.wait_ns_max + _PAUSE_NS_MAX
        if between(since, now) > bound:
            self._violations.append(f"step {step} was held for {between(since, now) / 1e9:.1f} s")

    def _end(self, step: StepId) -> None:
        self._waiting.pop(step, None)
        self._alive.discard(step)
        self._ended[step] += 1
        if self._ended[step] > 1:
            self._violations.append(f"step {step} ended {self._ended[step]} times")

    def left(self) -> list[str]:
        """What should be over and is not."""
        left = [f"step {step} never ended" for step in sorted(self._alive)]
        left += [f"pin {p} released {n} times" for p, n in self._unpinned.items() if n > 1]
        left += [f"pin {p} was asked for {n} times" for p, n in self._pinned.items() if n > 1]
        return left


def nothing_left(
    gateway: Gateway, engines: Sequence[SimulatedEngine], violations: list[str]
) -> None:
    """All is quiet: whatever was held for somebody has been let go."""
    scheduler = gateway.host.scheduler
    scheduler.check()
    found = {
        "live steps": gateway.host.live_steps,
        "steps of the scheduler": len(scheduler.steps),
        "held steps": scheduler.statistics().waiting_steps,
        "policy errors": scheduler.statistics().policy_errors_total,
        "plain requests": gateway.plain_requests,
        "running in engines": sum(len(engine.ledger.running) for engine in engines),
        "pins of the scheduler": scheduler.statistics().pins,
        "pins in engines": sum(len(engine.plugin.pins) for engine in engines if engine.plugin),
        "call ids that no engine gave": sum(len(e.ledger.strange_calls) for e in engines),
    }
    for engine in scheduler.engines.values():
        found[f"running on {engine.engine}"] = engine.running_steps
        found[f"not alive: {engine.engine}"] = not engine.is_alive
    violations += [f"left at the end: {count} {what}" for what, count in found.items() if count]
