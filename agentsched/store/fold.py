"""The journal folded: a scheduler brought to where its journal ends, after a crash as well.

The core is deterministic, so the events of the journal give the scheduler that wrote it. What ran
when the journal ends belongs to a process that is gone; `settle` says so in events of the journal
itself, so that it goes on as one journal, and whoever folds it again gets the same.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from agentsched.compose import SchedulerConfig, build_scheduler, choices_of, config_of
from agentsched.kernel import JournalEntry, JournalHeader, Scheduler
from agentsched.kernel.records import ProgramRecord
from agentsched.model import (
    EngineDrained,
    EngineId,
    EngineLost,
    Event,
    Instant,
    PeerReported,
    ProgramId,
    Reconfigured,
    ServedElsewhere,
    StepCancelled,
    StepId,
    StepState,
)

#: What the steps of a process that ended are told; their retries keep their places.
RESTARTED = "the proxy restarted"


@dataclass(slots=True, kw_only=True)
class FoldReport:
    """What came of folding. `is_whole`: no entry was missing, and there was time for all."""

    entries: int = 0
    missing: int = 0
    unlike: int = 0
    is_whole: bool = True
    took_s: float = 0.0


class Fold:
    """A scheduler that takes in entries of its journal, in order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.report = FoldReport()
        #: Where it is in time: an image's own instant, before any entry.
        self.now = scheduler.now
        #: Programs that entries were about, also those that were closed since.
        self.seen: dict[ProgramId, ProgramRecord] = {}
        self._began_with = dict(scheduler.programs)

    def feed(self, entry: JournalEntry) -> None:
        """Take in one entry; entries that are missing before it are noticed."""
        scheduler = self.scheduler
        if entry.seq < scheduler.next_seq:
            return
        if entry.seq > scheduler.next_seq:
            self._bridge(entry)
        # Looked up before: what ends a step or a program leaves nothing to look it up by.
        program = self._program_of(entry.event)
        before = scheduler.programs.get(program) if program is not None else None
        commands = scheduler.handle(entry.event, now=entry.now)
        self.report.entries += 1
        self.report.unlike += commands != entry.commands
        self.now = max(self.now, entry.now)
        record = scheduler.programs.get(program, before) if program is not None else None
        if record is not None:
            self.seen[record.program] = record

    def changed(self) -> list[ProgramRecord]:
        """Programs of which there is news: those seen, and those forgotten without an entry."""
        live = self.scheduler.programs
        silent = (r for key, r in self._began_with.items() if key not in live)
        return [*self.seen.values(), *(r for r in silent if r.program not in self.seen)]

    def _program_of(self, event: Event) -> ProgramId | None:
        program: ProgramId | None = getattr(event, "program", None)
        if program is not None:
            return program
        step = self.scheduler.steps.get(getattr(event, "step", StepId("")))
        return step.program if step is not None else None

    def _bridge(self, entry: JournalEntry) -> None:
        """Entries are missing: nobody knows what became of the steps that were live."""
        self.report.missing += entry.seq - self.scheduler.next_seq
        self.report.is_whole = False
        end_steps(self.scheduler, now=entry.now)
        self.scheduler.skip_to(entry.seq)

    def feed_all(self, entries: Iterable[JournalEntry], *, until: float) -> bool:
        """Take in entries until they end, or the monotonic clock says `until`; False: it did."""
        began = time.monotonic()
        try:
            for entry in entries:
                self.feed(entry)
                if time.monotonic() > until:
                    self.report.is_whole = False
                    return False
            return True
        finally:
            self.report.took_s += time.monotonic() - began


def fresh(header: JournalHeader) -> Scheduler:
    """The scheduler whose journal begins with this header, empty."""
    return build_scheduler(config_of(header))


def end_steps(scheduler: Scheduler, *, now: Instant) -> list[JournalEntry]:
    """End every live step, the waiting ones first; returns the entries."""
    entries: list[JournalEntry] = []
    while scheduler.steps:
        # An end makes room, so another may be sent out meanwhile; it ends in its turn.
        steps = scheduler.steps.values()
        waiting = next((s for s in steps if s.state is StepState.WAITING), None)
        step = (waiting or next(iter(steps))).step
        entries.append(_handle(scheduler, StepCancelled(step=step, reason=RESTARTED), now=now))
    return entries


def settle(
    scheduler: Scheduler,
    *,
    wanted: SchedulerConfig,
    engines: Collection[EngineId],
    now: Instant,
) -> list[JournalEntry]:
    """Bring a folded scheduler into the present process; returns the entries that this makes.

    Its steps end, engines that are configured no more are lost, what was so for as long as its
    process lived ends with it, and where the configuration is another one than that of the journal
    the policies and limits change.
    """
    entries = end_steps(scheduler, now=now)
    for engine in list(scheduler.engines.values()):
        if engine.is_alive and engine.engine not in engines:
            event = EngineLost(engine=engine.engine, reason="not configured any more")
            entries.append(_handle(scheduler, event, now=now))
    ended = list(_ended_with_its_process(scheduler, engines))
    entries += [_handle(scheduler, event, now=now) for event in ended]
    policies, choices = scheduler.policies, choices_of(wanted)
    is_same = policies.profile == wanted.profile and dict(policies.choices) == dict(choices)
    if not is_same or scheduler.limits != wanted.limits:
        change = Reconfigured(profile=wanted.profile, choices=choices, limits=wanted.limits)
        entries.append(_handle(scheduler, change, now=now))
    return entries


def _ended_with_its_process(scheduler: Scheduler, engines: Collection[EngineId]) -> Iterator[Event]:
    """What nobody else would take back: ejections, and what the process had heard of its peers.

    An operator's drain holds on, unless its engine went. Peers that are there say so again soon.
    """
    for key, engine in scheduler.engines.items():
        if engine.is_draining and not (engine.is_drain_lasting and key in engines):
            yield EngineDrained(engine=key, is_draining=False)
        for peer in engine.peers:
            yield PeerReported(engine=key, peer=peer, running_steps=0, resident_tokens=0)
    for tenant, account in scheduler.tenants.items():
        if account.waits_elsewhere:
            yield ServedElsewhere(tenant=tenant, uncached_tokens=0, output_tokens=0)


def _handle(scheduler: Scheduler, event: Event, *, now: Instant) -> JournalEntry:
    scheduler.handle(event, now=now)
    entry = scheduler.latest
    assert entry is not None
    return entry
