"""A journal read as what its clients did: programs, calls, pauses, and how long everything took.

Clients are taken as closed loops: a program's next call comes its recorded pause after the answer
before it, whenever that is. What calls were made of is read from the names of prefixes: equal names
are equal beginnings, so what programs shared they share again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from agentsched.kernel import JournalEntry
from agentsched.model import (
    Capabilities,
    ConversationId,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    Instant,
    PeerReported,
    ProgramClosed,
    ProgramId,
    Reconfigured,
    ServedElsewhere,
    StepArrived,
    StepFinished,
    StepId,
    StepStarted,
    TenantConfigured,
    TenantId,
)

_ZERO: Final = Instant(0)


@dataclass(slots=True, kw_only=True)
class PastStep:
    """One call that was answered."""

    arrived: StepArrived
    #: Of its first try: a client that was turned away and came back waited all the while.
    asked_at: Instant
    engine: EngineId
    sent_at: Instant
    started_at: Instant | None
    finished: StepFinished
    finished_at: Instant

    @property
    def prompt_tokens(self) -> int:
        """As the engine counted them, else as the proxy estimated."""
        return self.finished.usage.prompt_tokens or self.arrived.prompt_tokens


@dataclass(slots=True, kw_only=True)
class Past:
    """Everything that a journal tells about calls and engines.

    `unfinished` steps had no end in the journal, or none with an answer; programs are cut there.
    """

    programs: dict[ProgramId, dict[ConversationId, list[PastStep]]] = field(default_factory=dict)
    engines: dict[EngineId, Capabilities] = field(default_factory=dict)
    #: What operators had set of tenants when it ended.
    tenants: dict[TenantId, TenantConfigured] = field(default_factory=dict)
    #: Programs that somebody declared to be over.
    closed: set[ProgramId] = field(default_factory=set)
    unfinished: int = 0
    #: How often operators changed policies or limits, and engines were lost or drained.
    changes: int = 0
    losses: int = 0
    #: Other replicas used these engines, too.
    has_peers: bool = False
    began_at: Instant = _ZERO
    ended_at: Instant = _ZERO

    @property
    def steps(self) -> list[PastStep]:
        """All answered calls, by when they were sent."""
        found = [
            step
            for conversations in self.programs.values()
            for steps in conversations.values()
            for step in steps
        ]
        return sorted(found, key=lambda step: (step.sent_at, step.arrived.step))


@dataclass(slots=True)
class _Open:
    arrived: StepArrived
    asked_at: Instant
    engine: EngineId | None = None
    sent_at: Instant | None = None
    started_at: Instant | None = None


class PastReader:
    """Folds entries, one after the other, into a `Past`."""

    def __init__(self) -> None:
        self.past = Past()
        self._open: dict[StepId, _Open] = {}
        self._first: dict[StepId, Instant] = {}
        self._is_first = True

    def feed(self, entry: JournalEntry) -> None:
        """Take in one entry."""
        past, event, now = self.past, entry.event, entry.now
        if self._is_first:
            past.began_at, self._is_first = now, False
        past.ended_at = now
        match event:
            case EngineReported():
                past.engines[event.engine] = event.capabilities
            case TenantConfigured():
                before = past.tenants.get(event.tenant)
                if event.limits is None and before is not None:
                    event = replace(event, limits=before.limits)
                past.tenants[event.tenant] = event
            case StepArrived():
                asked_at = now if event.retries is None else self._first.get(event.retries, now)
                if event.retries is not None:
                    # It is the same call: what its first try waits for is the answer to this one.
                    self._open.pop(event.retries, None)
                    self._first.pop(event.retries, None)
                self._open[event.step] = _Open(event, asked_at)
                self._first[event.step] = asked_at
            case StepStarted():
                if event.step in self._open and self._open[event.step].started_at is None:
                    self._open[event.step].started_at = now
            case StepFinished():
                self._finish(event, now)
            case ProgramClosed() if event.reason != "idle":
                past.closed.add(event.program)
            case Reconfigured():
                past.changes += 1
            case EngineLost() | EngineDrained(is_draining=True):
                past.losses += 1
            case PeerReported() | ServedElsewhere():
                past.has_peers = True
            case _:
                pass
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.step in self._open:
                found = self._open[command.step]
                found.engine, found.sent_at, found.started_at = command.engine, now, None

    def _finish(self, event: StepFinished, now: Instant) -> None:
        found = self._open.pop(event.step, None)
        self._first.pop(event.step, None)
        if found is None or found.engine is None or found.sent_at is None:
            return
        step = PastStep(
            arrived=found.arrived,
            asked_at=found.asked_at,
            engine=found.engine,
            sent_at=found.sent_at,
            started_at=found.started_at,
            finished=event,
            finished_at=now,
        )
        conversations = self.past.programs.setdefault(found.arrived.program, {})
        conversations.setdefault(found.arrived.conversation, []).append(step)

    def end(self) -> Past:
        """What was read, once everything is in."""
        self.past.unfinished = len(self._open)
        return self.past


def read_past(entries: Iterable[JournalEntry]) -> Past:
    """The past that these entries tell."""
    reader = PastReader()
    for entry in entries:
        reader.feed(entry)
    return reader.end()
