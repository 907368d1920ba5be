"""The degenerate host: events and time come from a journal, commands are only compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agentsched.compose import build_scheduler, config_of
from agentsched.kernel import GraphBuilder, JournalEntry, JournalError, JournalHeader, Scheduler
from agentsched.model import Command, Event, Instant
from agentsched_bench.replay.journal_file import open_journal

MakeGraph = Callable[[], GraphBuilder]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first turn in which the replayed scheduler decided otherwise."""

    seq: int
    now: Instant
    event: Event
    recorded: tuple[Command, ...]
    replayed: tuple[Command, ...]

    def __str__(self) -> str:
        lines = [f"entry {self.seq} at {self.now} ns: {self.event}"]
        for title, commands in (("recorded", self.recorded), ("replayed", self.replayed)):
            lines.append(f"  {title}: {len(commands)} commands")
            lines += [f"    {command}" for command in commands]
        return "\n".join(lines)


class ReplayHost:
    """Feeds a scheduler what a journal says and compares what it answers."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Take a scheduler that has not handled any event."""
        self._scheduler = scheduler
        self._next_seq = scheduler.statistics().events_total

    def feed(self, entry: JournalEntry) -> Divergence | None:
        """Replay one turn.

        Raises:
            JournalError: a turn before this one is missing; what follows could not but differ.
        """
        if entry.seq != self._next_seq:
            raise JournalError(f"entry {entry.seq} where {self._next_seq} was to come")
        self._next_seq += 1
        replayed = self._scheduler.handle(entry.event, now=entry.now)
        if replayed == entry.commands:
            return None
        return Divergence(
            seq=entry.seq,
            now=entry.now,
            event=entry.event,
            recorded=entry.commands,
            replayed=replayed,
        )


def replay(
    header: JournalHeader, entries: Iterable[JournalEntry], *, graph: MakeGraph | None = None
) -> Divergence | None:
    """Replay a whole journal; the first turn that differs, None when all are the same.

    `graph` makes the graph builder, where the recorded scheduler had one.

    Raises:
        JournalError: the journal has gaps, or does not begin at its beginning.
        PolicyError: a policy of the journal cannot be loaded here.
    """
    scheduler = build_scheduler(config_of(header), graph=graph() if graph else None)
    host = ReplayHost(scheduler)
    divergences = (host.feed(entry) for entry in entries)
    return next((d for d in divergences if d is not None), None)


def replay_file(path: Path, *, graph: MakeGraph | None = None) -> Divergence | None:
    """Replay a journal file. Raises as `replay` and `open_journal` do."""
    with open_journal(path) as journal:
        return replay(journal.header, journal, graph=graph)
