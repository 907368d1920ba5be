"""A start: who was here before, and where they were. Bounded in time; without a database, anew.

Theory. The journal goes on over restarts as if nothing had happened: its instants go on counting
(by the time of day that passed), its numbers go on, and the end of what the old process did is
entered as events. So an image of any moment plus the journal since is the scheduler, exactly. Where
that is not to be had (too much journal, too little time, entries lost with an image that cannot be
read) what there is begins a new stream, whose first image it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from agentsched.compose import SchedulerConfig, config_of, journal_header
from agentsched.kernel import (
    JournalEntry,
    JournalError,
    JournalHeader,
    Scheduler,
    decode,
    decode_header,
    encode_header,
)
from agentsched.model import EngineId, Instant
from agentsched.store.database import TRANSACTION_S, Database, StoreError
from agentsched.store.fold import Fold, FoldReport, fresh, settle
from agentsched.store.image import read_image, take_image
from agentsched.store.reader import (
    Image,
    Stream,
    claim,
    copy_turns,
    read_images,
    read_lines,
    read_streams,
    read_turns,
    save_image,
    span,
)
from agentsched.store.records import StreamRecord, at_time
from agentsched.store.writing import Rows, renew_lease
from agentsched_graphs.builder import GraphBuilder

log = logging.getLogger(__name__)

#: A stream whose process died longer ago is nobody's any more: its programs have gone.
_ADOPT_WITHIN: Final = timedelta(hours=1)
_TURNS_MAX: Final = 200_000


class StreamClock:
    """The monotonic clock, counted from where a stream is."""

    def __init__(self, now: Instant) -> None:
        self._ahead = now - time.monotonic_ns()

    def now(self) -> Instant:
        """The present instant of the stream."""
        return Instant(time.monotonic_ns() + self._ahead)


@dataclass(slots=True, kw_only=True)
class Restored:
    """What a start found. `entries` are to be written: they bring the journal to the present.

    `opening` is the record of a stream that begins with this start.
    """

    scheduler: Scheduler
    clock: StreamClock
    stream: str
    epoch_ns: int
    turns: list[bytes] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)
    opening: StreamRecord | None = None
    report: FoldReport = field(default_factory=FoldReport)

    @property
    def is_continued(self) -> bool:
        """Whether the stream of an earlier process goes on."""
        return self.opening is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreConfig:
    """What a start wants. `timeout_s` is for everything, `idle_ns` how long programs live."""

    scheduler: SchedulerConfig
    engines: frozenset[EngineId]
    replica: str
    owner: str
    timeout_s: float
    events_max: int
    idle_ns: int


def begin(config: RestoreConfig) -> Restored:
    """A start with nothing: a new stream, an empty scheduler."""
    header = journal_header(config.scheduler)
    wall = time.time_ns()
    now = Instant(time.monotonic_ns())
    return _opened(config, fresh(header), header, epoch_ns=wall - now, now=now)


async def restore(database: Database, config: RestoreConfig) -> Restored:
    """Bring back what this replica, or one that died, left behind; an empty start if none did.

    Raises:
        StoreError: the database cannot be read.
    """
    until = time.monotonic() + config.timeout_s
    found = await _find(database, config)
    if found is None:
        return begin(config)
    try:
        header = decode_header(found.header)
    except JournalError as error:
        log.error("the journal of %s cannot be read: %s", found.replica, error)
        return begin(config)
    fold, is_exact = await _fold(database, found.stream, header, config, until=until)
    wall = time.time_ns()
    now = max(fold.now, Instant(wall - found.epoch_ns))
    entries = settle(fold.scheduler, wanted=config.scheduler, engines=config.engines, now=now)
    wanted = journal_header(config.scheduler)
    if is_exact and wanted.workflows == header.workflows:
        restored = Restored(
            scheduler=fold.scheduler,
            clock=StreamClock(now),
            stream=found.stream,
            epoch_ns=found.epoch_ns,
            entries=entries,
        )
    else:
        # The entries, and other workflows, are part of the image with which the new stream begins.
        _redeclare(fold.scheduler, header, config.scheduler)
        restored = _opened(config, fold.scheduler, wanted, epoch_ns=found.epoch_ns, now=now)
        if await _keep_first_image(database, restored):
            since_ns = wall - config.idle_ns
            await _hand_over(database, found.stream, restored, since_ns=since_ns)
    restored.report = fold.report
    restored.turns = await read_turns(
        database, found.stream, since_ns=wall - config.idle_ns, turns_max=_TURNS_MAX
    )
    return restored


async def _find(database: Database, config: RestoreConfig) -> Stream | None:
    """This replica's own stream, else one whose process died lately; it is ours from now on."""
    streams = await read_streams(database)
    now = datetime.now(UTC)
    own = [s for s in streams if s.replica == config.replica]
    orphans = [
        s
        for s in sorted(streams, key=lambda s: s.lease_until, reverse=True)
        if s.lease_until < now < s.lease_until + _ADOPT_WITHIN
    ]
    for stream in [*own[:1], *(s for s in orphans if not own)]:
        if await claim(database, stream, replica=config.replica, owner=config.owner):
            if stream.replica != config.replica:
                log.info("taking over what replica %s left behind", stream.replica)
            return stream
    return None


async def _fold(
    database: Database, stream: str, header: JournalHeader, config: RestoreConfig, *, until: float
) -> tuple[Fold, bool]:
    """The scheduler at the end of a stream; whether it is what folding the stream gives."""
    fold = Fold(await latest_image(database, stream) or fresh(header))
    ends = await span(database, stream)
    first = fold.scheduler.next_seq
    is_exact = True
    if ends is not None:
        earliest, last = ends
        start = max(first, last + 1 - config.events_max)
        if start > first or (first < earliest and not first):
            # There is more than may be replayed, or the journal's beginning is pruned.
            log.warning("the start leaves out %d journal entries", max(start, earliest) - first)
            if not first:  # else what is left out is a gap after the image
                fold.scheduler.skip_to(max(start, earliest))
            is_exact = False
        lines = read_lines(database, stream, first=max(start, fold.scheduler.next_seq))
        if not await fold_lines(fold, lines, until=until):
            log.warning("the start had no time for all journal entries")
            is_exact = False
    return fold, is_exact


async def fold_lines(fold: Fold, lines: AsyncIterator[list[str]], *, until: float) -> bool:
    """Feed lines of a journal; False: the monotonic clock said `until` before they ended."""
    async for chunk in lines:
        if not await asyncio.to_thread(_feed, fold, chunk, until):
            return False
    return True


def _feed(fold: Fold, lines: list[str], until: float) -> bool:
    entries = []
    for line in lines:
        try:
            entries.append(decode(line.encode()))
        except JournalError as error:
            log.error("a journal entry cannot be read: %s", error)  # a gap, as any other
    return fold.feed_all(entries, until=until)


async def latest_image(database: Database, stream: str) -> Scheduler | None:
    """The scheduler of the latest image that this code can read; None: there is none."""
    for image in await read_images(database, stream):
        try:
            scheduler = await asyncio.to_thread(read_image, image.data)
        except StoreError as error:
            log.error("an image cannot be read: %s", error)
            continue
        if scheduler.next_seq == image.seq:
            return scheduler
    return None


def _redeclare(scheduler: Scheduler, header: JournalHeader, wanted: SchedulerConfig) -> None:
    """What was edited of the configuration's workflows counts from this start on."""
    graphs = scheduler.graphs
    if isinstance(graphs, GraphBuilder):
        graphs.redeclare(before=config_of(header).workflows, after=wanted.workflows)


async def _keep_first_image(database: Database, restored: Restored) -> bool:
    """Keep the new stream's first image. False: it has none, and begins with nothing."""
    try:
        data = await asyncio.to_thread(take_image, restored.scheduler)
    except StoreError as error:
        log.error("%s", error)
        return False
    opening = restored.opening
    assert opening is not None
    image = Image(seq=restored.scheduler.next_seq, data=data)
    await save_image(database, restored.stream, image)
    return True


async def _hand_over(database: Database, old: str, restored: Restored, *, since_ns: int) -> None:
    """What a stream knew is a new one's: the start after this one needs its turns, and nobody may
    take the old one over as if its process had died, or two replicas would go on with the same.
    """
    opening = restored.opening
    assert opening is not None
    try:
        # First, so that at any moment there is one to go on with. The writer enters it once more.
        await Rows(database).insert([opening], timeout_s=TRANSACTION_S)
        await copy_turns(database, old, into=restored.stream, since_ns=since_ns)
        over = -_ADOPT_WITHIN.total_seconds()
        await renew_lease(database, old, owner=opening.owner, seconds=over)
    except StoreError as error:
        log.error("stream %s is not handed over: %s", old[:8], error)


def _opened(
    config: RestoreConfig,
    scheduler: Scheduler,
    header: JournalHeader,
    *,
    epoch_ns: int,
    now: Instant,
) -> Restored:
    """A new stream, whose scheduler may hold something already."""
    stream = secrets.token_hex(16)
    opening = StreamRecord(
        stream=stream,
        replica=config.replica,
        header=encode_header(header).decode(),
        epoch_ns=epoch_ns,
        opened_ns=epoch_ns + now,
        owner=config.owner,
    )
    return Restored(
        scheduler=scheduler,
        clock=StreamClock(now),
        stream=stream,
        epoch_ns=epoch_ns,
        opening=opening,
    )


def told(restored: Restored, *, seconds: float) -> str:
    """One line for the log."""
    if not restored.is_continued and not restored.report.entries:
        return "the store is empty: nothing to bring back"
    scheduler, report = restored.scheduler, restored.report
    since = at_time(restored.epoch_ns).isoformat(timespec="seconds")
    return (
        f"brought back {len(scheduler.programs)} programs, {len(scheduler.tenants)} tenants and "
        f"{len(restored.turns)} turns in {seconds:.2f} s ({report.entries} journal entries "
        f"replayed, {report.missing} missing; stream {restored.stream[:8]} of {since})"
    )
