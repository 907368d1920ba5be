"""How far shares over a cluster's replicas moved apart in a run, from the journals in its store.

Theory. Each replica's journal gives its scheduler again, turn by turn, and all are stamped by one
machine's clock. So feeding them side by side shows at every turn what each replica knew and what it
did not, and the bound of docs/fairness.md is checked there: a killed replica decides no more, but
what it had charged stays charged; one that comes back begins a new window with the others. What a
replica that was killed did since its last flush (`store.flush_interval`) is in no journal.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from agentsched.kernel import JournalEntry, Scheduler, decode, decode_header
from agentsched.model import AgentschedError, Instant, StepCancelled, StepFinished, TenantId
from agentsched.policy import Choice, Prices
from agentsched.store.database import Database, read_url
from agentsched.store.fold import RESTARTED, Fold, fresh
from agentsched.store.reader import read_lines, read_streams
from agentsched_bench.cluster.gaps import Gap, GapWatch

#: Shares as they are measured here: with the usual burst no short run could exceed the bound.
SHARE: Final = {"name": "weighted", "params": {"burst": 0.0, "memory_price": 0.0}}
_WINDOWS_TOLD: Final = 12
_SECOND: Final = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class Journal:
    """One replica's journal. `lives`: when its processes began and ended, ns since 1970."""

    replica: str
    scheduler: Scheduler
    choice: Choice
    entries: Sequence[tuple[int, JournalEntry]]
    lives: Sequence[tuple[int, int]]


@dataclass(slots=True)
class _Replica:
    """A replica while its journal is fed. `life`: how many of its lives have begun."""

    journal: Journal
    fold: Fold
    life: int = 0
    is_alive: bool = False


@dataclass(slots=True)
class _Found:
    """A window as it was last seen. `worst` is its gap where that came nearest to its bound."""

    began: int
    ended: int
    worst: Gap
    latest: Gap


@dataclass(slots=True, kw_only=True)
class ShareGap:
    """Feeds journals of several replicas side by side; `run`, then `told`."""

    journals: Sequence[Journal]
    tenants: Sequence[TenantId]
    watch: GapWatch = field(init=False)
    turns: int = 0
    #: Turns at which some pair waited everywhere.
    watched_turns: int = 0
    windows: list[_Found] = field(default_factory=list)
    _replicas: list[_Replica] = field(init=False)
    _open: dict[tuple[tuple[TenantId, TenantId], Instant], _Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._replicas = [_Replica(j, Fold(j.scheduler)) for j in self.journals]
        prices, burst = _terms([journal.choice for journal in self.journals])
        self.watch = GapWatch(
            schedulers=[journal.scheduler for journal in self.journals],
            tenants=self.tenants,
            prices=prices,
            burst=burst,
        )

    def run(self) -> ShareGap:
        """Feed all that there is."""
        for at, number, entry in self._merged():
            replica = self._replicas[number]
            if entry is None:
                replica.is_alive = False
                continue
            self._live(replica, entry, at=at)
            replica.fold.feed(entry)
            self.watch.took(replica.journal.scheduler, entry)
            self.turns += 1
            self._look(at)
        return self

    def _merged(self) -> Iterator[tuple[int, int, JournalEntry | None]]:
        """Turns of all replicas in the order of time, and the ends of their processes."""

        def of(number: int, journal: Journal) -> Iterator[tuple[int, int, JournalEntry | None]]:
            ends = [(ended, number, None) for _, ended in journal.lives]
            turns = [(at, number, entry) for at, entry in journal.entries]
            return heapq.merge(turns, ends, key=lambda item: item[0])

        streams = [of(number, journal) for number, journal in enumerate(self.journals)]
        return heapq.merge(*streams, key=lambda item: item[:2])

    def _live(self, replica: _Replica, entry: JournalEntry, *, at: int) -> None:
        """A process's first turns end what its predecessor left; then it is one of the others."""
        begun = sum(began <= at for began, _ in replica.journal.lives)
        if begun > replica.life:
            replica.life, replica.is_alive = begun, False
        if not replica.is_alive and not _is_settling(entry):
            replica.is_alive = True
            self.watch.begin_anew()

    def _look(self, at: int) -> None:
        living = [r.journal.scheduler for r in self._replicas if r.is_alive]
        gaps = self.watch.gaps(now=Instant(at), among=living)
        self.watched_turns += bool(gaps)
        seen = set()
        for gap in gaps:
            key = gap.pair, gap.since
            seen.add(key)
            found = self._open.get(key)
            if found is None:
                found = self._open[key] = _Found(at, at, gap, gap)
                self.windows.append(found)
            found.ended, found.latest = at, gap
            if _ratio(gap) >= _ratio(found.worst):
                found.worst = gap
        for key in self._open.keys() - seen:
            del self._open[key]

    def told(self, *, since: int, marks: Sequence[tuple[float, str]] = ()) -> dict[str, Any]:
        """Figures, in weighted units and seconds after `since` (ns since 1970)."""
        reports = [replica.fold.report for replica in self._replicas]
        missing = sum(r.missing for r in reports)
        unlike = sum(r.unlike for r in reports)
        exceeded = sum(not window.worst.is_within for window in self.windows)
        parts = self.watch.parts
        return {
            "turns": self.turns,
            "watched_turns": self.watched_turns,
            "steps_finished": sum(
                isinstance(e.event, StepFinished) for j in self.journals for _, e in j.entries
            ),
            "entries_missing": missing,
            "entries_unlike": unlike,
            "windows": len(self.windows),
            "windows_exceeded": exceeded,
            # Nobody was watched, or another scheduler than the one that ran: it shows nothing.
            "is_shown": bool(self.windows) and not missing and not unlike,
            "is_within": not exceeded,
            "spans": {
                name: _span([w for w in self.windows if begin <= _at(w.began, since) < end], since)
                for name, begin, end in _phases(marks)
            },
            "parts": {
                tenant: {
                    "estimate": round(p.estimate),
                    "error": round(p.error),
                    "out_of_turn": round(p.loose),
                    "out_of_turn_steps": p.loose_steps,
                }
                for tenant, p in sorted(parts.items())
            },
            "longest": [
                _window(w, since)
                for w in sorted(self.windows, key=lambda w: (w.began - w.ended, w.began))
            ][:_WINDOWS_TOLD],
        }


def is_shared(result: Mapping[str, Any]) -> bool:
    """Whether a run's shares stayed within the bound; True where they were not measured."""
    gap = result.get("gap")
    return gap is None or bool(gap["is_shown"] and gap["is_within"])


def _is_settling(entry: JournalEntry) -> bool:
    return isinstance(entry.event, StepCancelled) and entry.event.reason == RESTARTED


def _ratio(gap: Gap) -> float:
    return gap.width / gap.bound if gap.bound else float(gap.width > 0)


def _at(instant: int, since: int) -> float:
    return (instant - since) / _SECOND


def _phases(marks: Sequence[tuple[float, str]]) -> list[tuple[str, float, float]]:
    if not marks:
        return [("all", float("-inf"), float("inf"))]
    first, last = marks[0][0], marks[-1][0]
    return [
        ("before", float("-inf"), first),
        ("during", first, last),
        ("after", last, float("inf")),
    ]


def _span(windows: Sequence[_Found], since: int) -> dict[str, Any]:
    """Of the windows that began in one part of the run: the one nearest to its bound."""
    if not windows:
        return {}
    worst = max(windows, key=lambda w: (_ratio(w.worst), -w.began))
    return {
        "windows": len(windows),
        "seconds": round(sum(w.ended - w.began for w in windows) / _SECOND, 2),
        "charged": round(sum(w.latest.charged for w in windows)),
        "nearest": _window(worst, since),
    }


def _window(window: _Found, since: int) -> dict[str, Any]:
    worst = window.worst
    return {
        "pair": list(worst.pair),
        "began": round(_at(window.began, since), 2),
        "ended": round(_at(window.ended, since), 2),
        "gap": round(worst.width),
        "bound": round(worst.bound),
        "of_it_out_of_turn": round(worst.loose),
        "in_flight": worst.in_flight,
        "hidden": round(worst.hidden),
        "charged": round(window.latest.charged),
    }


def _terms(choices: Sequence[Choice]) -> tuple[Prices, float]:
    """Prices and burst of the share policy, which must be the same everywhere.

    Raises:
        AgentschedError: other shares than those that can be measured.
    """
    found = {(c.name, tuple(sorted(c.params.items()))) for c in choices}
    (name, params), *others = found
    terms: dict[str, Any] = dict(params)
    if others or name != "weighted" or terms.get("memory_price") != 0.0:
        raise AgentschedError(f"shares are measured with `{SHARE}` on every replica")
    prices = Prices(output=terms.get("output_price", Prices().output), memory=0.0)
    return prices, float(terms["burst"])


async def read_journals(
    url: str, *, lives: Mapping[str, Sequence[tuple[int, int]]]
) -> list[Journal]:
    """Journals of these replicas from a store, with when their processes lived.

    Raises:
        StoreError: the database cannot be read.
        JournalError: something in it is not a journal of ours.
        AgentschedError: a replica began more than one stream, so that there is no one journal.
    """
    database = Database(read_url(url))
    try:
        streams = [s for s in await read_streams(database) if s.replica in lives]
        streams.sort(key=lambda s: s.replica)
        for replica, group in groupby(streams, key=lambda s: s.replica):
            if len(list(group)) > 1:
                raise AgentschedError(f"{replica} did not go on with its own journal")
        journals = []
        for stream in streams:
            header = decode_header(stream.header)
            lines = [line async for chunk in read_lines(database, stream.stream) for line in chunk]
            entries = [decode(line.encode()) for line in lines]
            journals.append(
                Journal(
                    replica=stream.replica,
                    scheduler=fresh(header),
                    choice=header.choices["share"],
                    entries=[(stream.epoch_ns + entry.now, entry) for entry in entries],
                    lives=lives[stream.replica],
                )
            )
        return journals
    finally:
        await database.aclose()
